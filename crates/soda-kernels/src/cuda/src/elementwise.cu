// The bias and residual epilogue, casts, and concatenation and split of channels. Comes after packs.cuh.

// y = x + bias + residual for rows of c. A bias row applies to `numbers_per_bias` numbers. y may be x, and
// residual may be null.
template <class T, int N> __device__ void bias_residual_packs(const T *x, const T *bias, const T *residual, T *y, i64 c, i64 numbers_per_bias, i64 n) {
  unsigned per_row = (unsigned)c / N, packs = (unsigned)(numbers_per_bias / N);
  EACH_OF_GRID(v, n / N) {
    Pack<T, N> in = load_pack<T, N>(x, v), shift = load_pack<T, N>(bias, v / packs * per_row + v % per_row), skip = residual ? load_pack<T, N>(residual, v) : Pack<T, N>(), out;
    EACH_IN_PACK(j) store(out.at + j, load(in.at[j]) + load(shift.at[j]) + load(skip.at[j]));
    store_pack(y, v, out);
  }
}

template <class T> __device__ void bias_residual(const T *x, const T *bias, const T *residual, T *y, i64 c, i64 numbers_per_bias, i64 n) {
  if (packs_aligned<T>(c, (i64)x | (i64)bias | (i64)residual | (i64)y)) bias_residual_packs<T, 16 / sizeof(T)>(x, bias, residual, y, c, numbers_per_bias, n);
  else bias_residual_packs<T, 1>(x, bias, residual, y, c, numbers_per_bias, n);
}

// Casts two float tensors, a to x and b to y, by the two rows of the grid.
template <class T, int N> __device__ void cast_packs(const float *from, T *to, i64 n) {
  EACH_OF_GRID(v, n / N) {
    Pack<float, N> in = load_pack<float, N>(from, v);
    Pack<T, N> out;
    EACH_IN_PACK(j) store(out.at + j, in.at[j]);
    store_pack(to, v, out);
  }
}

template <class T> __device__ void cast_pair(const float *a, const float *b, T *x, T *y, i64 n, i64 m) {
  const float *from = blockIdx.y ? b : a;
  T *to = blockIdx.y ? y : x;
  i64 numbers = blockIdx.y ? m : n;
  if (packs_aligned<float>(numbers, (i64)from | (i64)to)) cast_packs<T, 4>(from, to, numbers);
  else cast_packs<T, 1>(from, to, numbers);
}

// y = (a, b) for each row, and its inverse `split_channels`.
template <class T, int N> __device__ void concat_channels_packs(const T *a, const T *b, T *y, i64 first, i64 second, i64 rows) {
  unsigned per_a = (unsigned)first / N, per_b = (unsigned)second / N, per_row = per_a + per_b;
  EACH_OF_GRID(v, rows * per_row) {
    unsigned row = v / per_row, at = v - row * per_row;
    store_pack(y, v, at < per_a ? load_pack<T, N>(a, (i64)row * per_a + at) : load_pack<T, N>(b, (i64)row * per_b + at - per_a));
  }
}

template <class T> __device__ void concat_channels(const T *a, const T *b, T *y, i64 first, i64 second, i64 rows) {
  if (packs_aligned<T>(first, (i64)a) && packs_aligned<T>(second, (i64)b | (i64)y)) concat_channels_packs<T, 16 / sizeof(T)>(a, b, y, first, second, rows);
  else concat_channels_packs<T, 1>(a, b, y, first, second, rows);
}

template <class T, int N> __device__ void split_channels_packs(const T *y, T *a, T *b, i64 first, i64 second, i64 rows) {
  unsigned per_a = (unsigned)first / N, per_b = (unsigned)second / N, per_row = per_a + per_b;
  EACH_OF_GRID(v, rows * per_row) {
    unsigned row = v / per_row, at = v - row * per_row;
    Pack<T, N> in = load_pack<T, N>(y, v);
    if (at < per_a) store_pack(a, (i64)row * per_a + at, in);
    else store_pack(b, (i64)row * per_b + at - per_a, in);
  }
}

template <class T> __device__ void split_channels(const T *y, T *a, T *b, i64 first, i64 second, i64 rows) {
  if (packs_aligned<T>(first, (i64)a) && packs_aligned<T>(second, (i64)b | (i64)y)) split_channels_packs<T, 16 / sizeof(T)>(y, a, b, first, second, rows);
  else split_channels_packs<T, 1>(y, a, b, first, second, rows);
}

// Sums of 2 x 2 pixels of dy [b, height, width, c], for n numbers of dx. An odd last row or column is alone.
template <class T> __device__ void upsample_nearest_gradient(const T *dy, T *dx, i64 height, i64 width, i64 c, i64 n) {
  unsigned w = (unsigned)(width + 1) / 2, h = (unsigned)(height + 1) / 2;
  EACH_OF_GRID(v, n) {
    unsigned pixel = v / (unsigned)c, channel = v - pixel * (unsigned)c;
    unsigned line = pixel / w, j = 2 * (pixel - line * w), sample = line / h, i = 2 * (line - sample * h);
    float sum = 0;
    EACH(a, 2) EACH(b, 2) if (i + a < height && j + b < width) {
      sum += load(dy[((sample * height + i + a) * width + j + b) * c + channel]);
    }
    store(dx + v, sum);
  }
}

#define EXPORT(T, t) extern "C" { \
  __global__ void bias_residual_##t(const T *x, const T *bias, const T *residual, T *y, i64 c, i64 numbers_per_bias, i64 n) { bias_residual(x, bias, residual, y, c, numbers_per_bias, n); } \
  __global__ void cast_pair_##t(const float *a, const float *b, T *x, T *y, i64 n, i64 m) { cast_pair(a, b, x, y, n, m); } \
  __global__ void concat_channels_##t(const T *a, const T *b, T *y, i64 first, i64 second, i64 rows) { concat_channels(a, b, y, first, second, rows); } \
  __global__ void split_channels_##t(const T *y, T *a, T *b, i64 first, i64 second, i64 rows) { split_channels(y, a, b, first, second, rows); } \
  __global__ void upsample_nearest_gradient_##t(const T *dy, T *dx, i64 height, i64 width, i64 c, i64 n) { upsample_nearest_gradient(dy, dx, height, width, c, n); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
