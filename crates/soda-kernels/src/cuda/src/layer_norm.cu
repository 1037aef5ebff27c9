// Layer norm over rows and its gradient. Scale and shift change after every `per` rows. Comes after rows.cuh.

template <class Row, class T> __device__ void row_stats(const Row &row, const T *x, float eps, float *v, float &mean, float &rstd) {
  float s = 0, q = 0;
  row.read(x, v, 0);
  EACH_HELD(k) s += v[k];
  mean = row.total(s) / row.n;
  EACH_HELD(k) if (row.has(k)) { float d = v[k] - mean; q += d * d; }
  rstd = rsqrtf(row.total(q) / row.n + eps);
}

template <class Row, class T>
__device__ void layer_norm(const Row &row, const T *x, const T *gamma, const T *beta, T *y, float eps) {
  float v[Row::HELD], w[Row::HELD], b[Row::HELD], mean, rstd;
  // Reads that are under way while a block computes the statistics. A warp has no registers for them.
  if (!Row::IN_WARP) { row.read(gamma, w, 0); row.read(beta, b, 0); }
  row_stats(row, x, eps, v, mean, rstd);
  if (Row::IN_WARP) row.read(gamma, w, 0);
  EACH_HELD(k) v[k] = (v[k] - mean) * rstd * w[k];
  if (Row::IN_WARP) row.read(beta, b, 0);
  EACH_HELD(k) v[k] += b[k];
  row.write(y, v);
}

// g = dy gamma; dx = rstd (g - mean(g) - xhat mean(g xhat))
template <class Row, class T>
__device__ void layer_norm_gradient(const Row &row, const T *x, const T *dy, const T *gamma, T *dx, float eps) {
  float v[Row::HELD], g[Row::HELD], w[Row::HELD], mean, rstd, a = 0, b = 0;
  if (!Row::IN_WARP) { row.read(dy, g, 0); row.read(gamma, w, 0); }
  row_stats(row, x, eps, v, mean, rstd);
  if (Row::IN_WARP) { row.read(dy, g, 0); row.read(gamma, w, 0); }
  EACH_HELD(k) {
    v[k] = (v[k] - mean) * rstd;
    g[k] *= w[k];
    a += g[k]; b += g[k] * v[k];
  }
  a = row.total(a) / row.n; b = row.total(b) / row.n;
  EACH_HELD(k) g[k] = rstd * (g[k] - a - v[k] * b);
  row.write(dx, g);
}

// The index of the row of this warp.
__device__ i64 row_of_warp() { return blockIdx.x * (i64)(blockDim.x / 32) + threadIdx.x / 32; }

#define EXPORT(T, t) extern "C" { \
  __global__ void __launch_bounds__(1024) layer_norm_##t(const T *x, const T *g, const T *b, T *y, i64 n, i64 per, float eps) { \
    i64 at = blockIdx.x * n, of = blockIdx.x / per * n; \
    layer_norm(Row<T>(n, (i64)x | (i64)y | (i64)g | (i64)b), x + at, g + of, b + of, y + at, eps); \
  } \
  __global__ void layer_norm_in_warps_##t(const T *x, const T *g, const T *b, T *y, i64 n, i64 per, float eps, i64 rows) { \
    i64 row = row_of_warp(), at = row * n, of = row / per * n; \
    if (row < rows) layer_norm(Row<T, true>(n, 0), x + at, g + of, b + of, y + at, eps); \
  } \
  __global__ void __launch_bounds__(1024) layer_norm_gradient_##t(const T *x, const T *dy, const T *g, T *dx, i64 n, i64 per, float eps) { \
    i64 at = blockIdx.x * n, of = blockIdx.x / per * n; \
    layer_norm_gradient(Row<T>(n, (i64)x | (i64)dy | (i64)dx | (i64)g), x + at, dy + at, g + of, dx + at, eps); \
  } \
  __global__ void layer_norm_gradient_in_warps_##t(const T *x, const T *dy, const T *g, T *dx, i64 n, i64 per, float eps, i64 rows) { \
    i64 row = row_of_warp(), at = row * n, of = row / per * n; \
    if (row < rows) layer_norm_gradient(Row<T, true>(n, 0), x + at, dy + at, g + of, dx + at, eps); \
  } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
