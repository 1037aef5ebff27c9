// What scales columns, joins maps and copies. Comes after kernels.cu, of which what it says holds here.

// y = l diag(max(gain, least)), columns of l `[rows, k]`. What is no number is kept, to be found out. A thread has the same
// columns of several rows; of threads there are at least as many as packs in a row.
__device__ bool counts(float gain, float least) { return !(gain <= least); }

template <class T, int N> __device__ void columns_packs(const T *l, const float *gain, const float *least, T *y, i64 k, i64 n) {
  unsigned per = (unsigned)k / N, step = gridDim.x * blockDim.x / per, first = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned at = first % per, rows = (unsigned)(n / k);
  if (first / per >= step) return;
  float kept[N];
  NEIGHBOURS(j) { float g = gain[at * N + j], m = least[at * N + j]; kept[j] = counts(g, m) ? g : m; }
  for (unsigned row = first / per; row < rows; row += 4 * step) {
    // All that is read, before any is written.
    Pack<T, N> in[4], out;
    #pragma unroll
    for (int i = 0; i < 4; i++) if (row + i * step < rows) in[i] = pack<T, N>(l, (i64)(row + i * step) * per + at);
    #pragma unroll
    for (int i = 0; i < 4; i++) if (row + i * step < rows) {
      NEIGHBOURS(j) store(out.at + j, load(in[i].at[j]) * kept[j]);
      put(y, (i64)(row + i * step) * per + at, out);
    }
  }
}

template <class T> __device__ void columns(const T *l, const float *gain, const float *least, T *y, i64 k, i64 n) {
  if (packed<T>(k, (i64)l | (i64)y)) columns_packs<T, 16 / sizeof(T)>(l, gain, least, y, k, n);
  else columns_packs<T, 1>(l, gain, least, y, k, n);
}

// Its gradient by the gain: of each column the sum of l dy, where the gain counts. Two packs of columns a block, half a warp's
// lanes for one.
template <class T, int N>
__device__ void columns_gradient_packs(const T *l, const T *dy, const float *gain, const float *least, float *to, i64 rows, i64 k) {
  __shared__ float parts[32][2 * N];
  i64 per = k / N, at = blockIdx.x * 2 + threadIdx.x % 2;
  float sums[N];
  NEIGHBOURS(j) sums[j] = 0;
  if (at < per) {
    #pragma unroll 4
    for (i64 r = threadIdx.x / 2; r < rows; r += blockDim.x / 2) {
      Pack<T, N> a = pack<T, N>(l, r * per + at), b = pack<T, N>(dy, r * per + at);
      NEIGHBOURS(j) sums[j] += load(a.at[j]) * load(b.at[j]);
    }
  }
  NEIGHBOURS(j) for (int o = 2; o < 32; o *= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], o);
  if (threadIdx.x % 32 < 2) NEIGHBOURS(j) parts[threadIdx.x / 32][threadIdx.x % 2 * N + j] = sums[j];
  __syncthreads();
  i64 column = blockIdx.x * 2 * N + threadIdx.x;
  if (threadIdx.x >= 2 * N || column >= k) return;
  float s = 0;
  for (int w = 0; w < blockDim.x / 32; w++) s += parts[w][threadIdx.x];
  to[column] = counts(gain[column], least[column]) ? s : 0;
}

template <class T>
__device__ void columns_gradient(const T *l, const T *dy, const float *gain, const float *least, float *to, i64 rows, i64 k) {
  if (packed<T>(k, (i64)l | (i64)dy)) columns_gradient_packs<T, 16 / sizeof(T)>(l, dy, gain, least, to, rows, k);
  else columns_gradient_packs<T, 1>(l, dy, gain, least, to, rows, k);
}

// y = x + bias + rest, rows of c; a row of the bias is for `each` numbers. May be written where x is.
template <class T, int N> __device__ void plus_packs(const T *x, const T *bias, const T *rest, T *y, i64 c, i64 each, i64 n) {
  unsigned per = (unsigned)c / N, packs = (unsigned)(each / N);
  ALL(v, n / N) {
    Pack<T, N> in = pack<T, N>(x, v), shift = pack<T, N>(bias, v / packs * per + v % per), more = rest ? pack<T, N>(rest, v) : Pack<T, N>(), out;
    NEIGHBOURS(j) store(out.at + j, load(in.at[j]) + load(shift.at[j]) + load(more.at[j]));
    put(y, v, out);
  }
}

template <class T> __device__ void plus(const T *x, const T *bias, const T *rest, T *y, i64 c, i64 each, i64 n) {
  if (packed<T>(c, (i64)x | (i64)bias | (i64)rest | (i64)y)) plus_packs<T, 16 / sizeof(T)>(x, bias, rest, y, c, each, n);
  else plus_packs<T, 1>(x, bias, rest, y, c, each, n);
}

// Two tensors of float32 in another type: a to x and b to y, by the two rows of the grid.
template <class T, int N> __device__ void narrow_packs(const float *from, T *to, i64 n) {
  ALL(v, n / N) {
    Pack<float, N> in = pack<float, N>(from, v);
    Pack<T, N> out;
    NEIGHBOURS(j) store(out.at + j, in.at[j]);
    put(to, v, out);
  }
}

template <class T> __device__ void both_narrow(const float *a, const float *b, T *x, T *y, i64 n, i64 m) {
  const float *from = blockIdx.y ? b : a;
  T *to = blockIdx.y ? y : x;
  i64 numbers = blockIdx.y ? m : n;
  if (packed<float>(numbers, (i64)from | (i64)to)) narrow_packs<T, 4>(from, to, numbers);
  else narrow_packs<T, 1>(from, to, numbers);
}

// y = (a, b) for each row
template <class T, int N> __device__ void join_packs(const T *a, const T *b, T *y, i64 first, i64 second, i64 rows) {
  unsigned per_a = (unsigned)first / N, per_b = (unsigned)second / N, per = per_a + per_b;
  ALL(v, rows * per) {
    unsigned row = v / per, at = v - row * per;
    put(y, v, at < per_a ? pack<T, N>(a, (i64)row * per_a + at) : pack<T, N>(b, (i64)row * per_b + at - per_a));
  }
}

template <class T> __device__ void join(const T *a, const T *b, T *y, i64 first, i64 second, i64 rows) {
  if (packed<T>(first, (i64)a) && packed<T>(second, (i64)b | (i64)y)) join_packs<T, 16 / sizeof(T)>(a, b, y, first, second, rows);
  else join_packs<T, 1>(a, b, y, first, second, rows);
}

template <class T, int N> __device__ void apart_packs(const T *y, T *a, T *b, i64 first, i64 second, i64 rows) {
  unsigned per_a = (unsigned)first / N, per_b = (unsigned)second / N, per = per_a + per_b;
  ALL(v, rows * per) {
    unsigned row = v / per, at = v - row * per;
    Pack<T, N> in = pack<T, N>(y, v);
    if (at < per_a) put(a, (i64)row * per_a + at, in);
    else put(b, (i64)row * per_b + at - per_a, in);
  }
}

template <class T> __device__ void apart(const T *y, T *a, T *b, i64 first, i64 second, i64 rows) {
  if (packed<T>(first, (i64)a) && packed<T>(second, (i64)b | (i64)y)) apart_packs<T, 16 / sizeof(T)>(y, a, b, first, second, rows);
  else apart_packs<T, 1>(y, a, b, first, second, rows);
}

// Many copies at once, blockIdx.y counts them.
enum { COPIES = 160 };
struct Copies { i64 from[COPIES], to[COPIES], bytes[COPIES]; };

template <class T> __device__ void copy(i64 from, i64 to, i64 bytes) {
  i64 n = bytes / sizeof(T), step = (i64)gridDim.x * blockDim.x;
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += step) ((T *)to)[i] = ((const T *)from)[i];
}

extern "C" __global__ void copies(const Copies list) {
  i64 from = list.from[blockIdx.y], to = list.to[blockIdx.y], bytes = list.bytes[blockIdx.y];
  int odd = (int)((from | to | bytes) & 15);
  if (odd == 0) copy<uint4>(from, to, bytes);
  else if (odd % 4 == 0) copy<unsigned>(from, to, bytes);
  else copy<unsigned char>(from, to, bytes);
}

#undef EXPORT
#define EXPORT(T, t) extern "C" { \
  __global__ void plus_##t(const T *x, const T *bias, const T *rest, T *y, i64 c, i64 each, i64 n) { plus(x, bias, rest, y, c, each, n); } \
  __global__ void both_narrow_##t(const float *a, const float *b, T *x, T *y, i64 n, i64 m) { both_narrow(a, b, x, y, n, m); } \
  __global__ void join_##t(const T *a, const T *b, T *y, i64 first, i64 second, i64 rows) { join(a, b, y, first, second, rows); } \
  __global__ void apart_##t(const T *y, T *a, T *b, i64 first, i64 second, i64 rows) { apart(y, a, b, first, second, rows); } \
  __global__ void columns_##t(const T *l, const float *gain, const float *least, T *y, i64 k, i64 n) { columns(l, gain, least, y, k, n); } \
  __global__ void columns_gradient_##t(const T *l, const T *dy, const float *gain, const float *least, float *to, i64 rows, i64 k) { columns_gradient(l, dy, gain, least, to, rows, k); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
