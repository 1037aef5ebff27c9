// GEGLU and its gradient. Comes after packs.cuh.

// y = a gelu(b) for rows (a, b), with gelu(b) = b P(b) and the standard normal distribution P
__device__ float normal_cdf(float b) { return 0.5f * (1 + erff(b * 0.70710678f)); }

// The packs of both halves of a row, plus the bias unless it is null.
template <class T, int N> struct GatedPack {
  float a[N], b[N];
  __device__ GatedPack(const T *x, const T *bias, i64 from, unsigned column, unsigned per_row) {
    Pack<T, N> left = load_pack<T, N>(x, from), right = load_pack<T, N>(x, from + per_row);
    EACH_IN_PACK(j) { a[j] = load(left.at[j]); b[j] = load(right.at[j]); }
    if (!bias) return;
    left = load_pack<T, N>(bias, column); right = load_pack<T, N>(bias, column + per_row);
    EACH_IN_PACK(j) { a[j] += load(left.at[j]); b[j] += load(right.at[j]); }
  }
};

template <class T, int N> __device__ void geglu_packs(const T *x, const T *bias, T *y, i64 c, i64 n) {
  unsigned per_row = (unsigned)c / N;
  EACH_OF_GRID(v, n / N) {
    unsigned row = v / per_row;
    GatedPack<T, N> in(x, bias, v + (i64)row * per_row, v - row * per_row, per_row);
    Pack<T, N> out;
    EACH_IN_PACK(j) store(out.at + j, in.a[j] * in.b[j] * normal_cdf(in.b[j]));
    store_pack(y, v, out);
  }
}

template <class T> __device__ void geglu(const T *x, const T *bias, T *y, i64 c, i64 n) {
  if (packs_aligned<T>(c, (i64)x | (i64)bias | (i64)y)) geglu_packs<T, 16 / sizeof(T)>(x, bias, y, c, n);
  else geglu_packs<T, 1>(x, bias, y, c, n);
}

template <class T, int N>
__device__ void geglu_gradient_packs(const T *x, const T *bias, const T *dy, T *dx, i64 c, i64 n) {
  unsigned per_row = (unsigned)c / N;
  EACH_OF_GRID(v, n / N) {
    unsigned row = v / per_row;
    i64 from = v + (i64)row * per_row;
    GatedPack<T, N> in(x, bias, from, v - row * per_row, per_row);
    Pack<T, N> d = load_pack<T, N>(dy, v), da, db;
    EACH_IN_PACK(j) {
      float g = in.b[j], slope = load(d.at[j]), p = normal_cdf(g);
      store(da.at + j, slope * g * p);
      store(db.at + j, slope * in.a[j] * (p + g * 0.39894228f * __expf(-0.5f * g * g)));
    }
    store_pack(dx, from, da);
    store_pack(dx, from + per_row, db);
  }
}

template <class T> __device__ void geglu_gradient(const T *x, const T *bias, const T *dy, T *dx, i64 c, i64 n) {
  if (packs_aligned<T>(c, (i64)x | (i64)bias | (i64)dy | (i64)dx)) geglu_gradient_packs<T, 16 / sizeof(T)>(x, bias, dy, dx, c, n);
  else geglu_gradient_packs<T, 1>(x, bias, dy, dx, c, n);
}

#define EXPORT(T, t) extern "C" { \
  __global__ void geglu_##t(const T *x, const T *b, T *y, i64 c, i64 n) { geglu(x, b, y, c, n); } \
  __global__ void geglu_gradient_##t(const T *x, const T *b, const T *dy, T *dx, i64 c, i64 n) { geglu_gradient(x, b, dy, dx, c, n); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
