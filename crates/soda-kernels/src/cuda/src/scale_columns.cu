// A matrix times a diagonal matrix whose entries are clamped from below, and the gradient by the diagonal.
// Comes after packs.cuh.

// y = l diag(max(gain, lower)) for l [rows, k]. A gain that is NaN stays NaN, so that it is noticed. A thread
// has the same columns of several rows, and there are at least as many threads as packs in a row.
__device__ bool above_floor(float gain, float lower) { return !(gain <= lower); }

template <class T, int N> __device__ void scale_columns_packs(const T *l, const float *gain, const float *lower, T *y, i64 k, i64 n) {
  unsigned per_row = (unsigned)k / N, step = gridDim.x * blockDim.x / per_row, first = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned at = first % per_row, rows = (unsigned)(n / k);
  if (first / per_row >= step) return;
  float clamped[N];
  EACH_IN_PACK(j) { float g = gain[at * N + j], m = lower[at * N + j]; clamped[j] = above_floor(g, m) ? g : m; }
  for (unsigned row = first / per_row; row < rows; row += 4 * step) {
    // All reads come before the first write.
    Pack<T, N> in[4], out;
    #pragma unroll
    for (int i = 0; i < 4; i++) if (row + i * step < rows) in[i] = load_pack<T, N>(l, (i64)(row + i * step) * per_row + at);
    #pragma unroll
    for (int i = 0; i < 4; i++) if (row + i * step < rows) {
      EACH_IN_PACK(j) store(out.at + j, load(in[i].at[j]) * clamped[j]);
      store_pack(y, (i64)(row + i * step) * per_row + at, out);
    }
  }
}

template <class T> __device__ void scale_columns(const T *l, const float *gain, const float *lower, T *y, i64 k, i64 n) {
  if (packs_aligned<T>(k, (i64)l | (i64)y)) scale_columns_packs<T, 16 / sizeof(T)>(l, gain, lower, y, k, n);
  else scale_columns_packs<T, 1>(l, gain, lower, y, k, n);
}

// The gradient by the gain: the sum of l dy over each column whose gain is above the lower bound. A block has
// two packs of columns, and half of a warp's lanes have one of them.
template <class T, int N>
__device__ void scale_columns_gradient_packs(const T *l, const T *dy, const float *gain, const float *lower, float *to, i64 rows, i64 k) {
  __shared__ float parts[32][2 * N];
  i64 per_row = k / N, at = blockIdx.x * 2 + threadIdx.x % 2;
  float sums[N];
  EACH_IN_PACK(j) sums[j] = 0;
  if (at < per_row) {
    #pragma unroll 4
    for (i64 r = threadIdx.x / 2; r < rows; r += blockDim.x / 2) {
      Pack<T, N> a = load_pack<T, N>(l, r * per_row + at), b = load_pack<T, N>(dy, r * per_row + at);
      EACH_IN_PACK(j) sums[j] += load(a.at[j]) * load(b.at[j]);
    }
  }
  EACH_IN_PACK(j) for (int o = 2; o < 32; o *= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], o);
  if (threadIdx.x % 32 < 2) EACH_IN_PACK(j) parts[threadIdx.x / 32][threadIdx.x % 2 * N + j] = sums[j];
  __syncthreads();
  i64 column = blockIdx.x * 2 * N + threadIdx.x;
  if (threadIdx.x >= 2 * N || column >= k) return;
  float s = 0;
  for (int w = 0; w < blockDim.x / 32; w++) s += parts[w][threadIdx.x];
  to[column] = above_floor(gain[column], lower[column]) ? s : 0;
}

template <class T>
__device__ void scale_columns_gradient(const T *l, const T *dy, const float *gain, const float *lower, float *to, i64 rows, i64 k) {
  if (packs_aligned<T>(k, (i64)l | (i64)dy)) scale_columns_gradient_packs<T, 16 / sizeof(T)>(l, dy, gain, lower, to, rows, k);
  else scale_columns_gradient_packs<T, 1>(l, dy, gain, lower, to, rows, k);
}

#define EXPORT(T, t) extern "C" { \
  __global__ void scale_columns_##t(const T *l, const float *gain, const float *lower, T *y, i64 k, i64 n) { scale_columns(l, gain, lower, y, k, n); } \
  __global__ void scale_columns_gradient_##t(const T *l, const T *dy, const float *gain, const float *lower, float *to, i64 rows, i64 k) { scale_columns_gradient(l, dy, gain, lower, to, rows, k); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
