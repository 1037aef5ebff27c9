// Softmax over rows and its gradient. Comes after rows.cuh.
//
// The kernels of this file and of all others of the base image exist for float (f32), bfloat16 (bf16) and
// half (f16). They give the same bits in every run: there are no atomics, and one order of summation. No
// header is needed, so that NVRTC alone compiles them.

// Softmax over the first `keys` numbers of each row. The others become 0.
template <class T> __device__ void softmax(const T *x, T *y, i64 n, i64 keys) {
  typedef Row<T> Row;
  x += blockIdx.x * n; y += blockIdx.x * n;
  Row row(n, (i64)x | (i64)y);
  float v[Row::HELD], m = -INF, s = 0;
  row.read(x, v, -INF);
  if (keys < n) EACH_HELD(k) if (row.index(k) >= keys) v[k] = -INF;
  EACH_HELD(k) m = fmaxf(m, v[k]);
  m = reduce<Max>(m, -INF, blockDim.x);
  EACH_HELD(k) { v[k] = __expf(v[k] - m); s += v[k]; }
  s = 1 / row.total(s);
  EACH_HELD(k) v[k] *= s;
  row.write(y, v);
}

// dx = p (dp - sum(p dp))
template <class T> __device__ void softmax_gradient(const T *p, const T *dp, T *dx, i64 n) {
  typedef Row<T> Row;
  i64 at = blockIdx.x * n;
  Row row(n, (i64)p | (i64)dp | (i64)dx);
  float v[Row::HELD], d[Row::HELD], s = 0;
  row.read(p + at, v, 0); row.read(dp + at, d, 0);
  EACH_HELD(k) s += v[k] * d[k];
  s = row.total(s);
  EACH_HELD(k) v[k] *= d[k] - s;
  row.write(dx + at, v);
}

#define EXPORT(T, t) extern "C" { \
  __global__ void softmax_##t(const T *x, T *y, i64 n, i64 keys) { softmax(x, y, n, keys); } \
  __global__ void softmax_gradient_##t(const T *p, const T *dp, T *dx, i64 n) { softmax_gradient(p, dp, dx, n); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
