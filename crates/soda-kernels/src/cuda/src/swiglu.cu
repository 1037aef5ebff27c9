// SwiGLU and its gradient, for rows any distance apart. Comes after packs.cuh.

// y = a s(a) b for rows (a, b), with the sigmoid s. `c` is the width of a half.
template <class T, int N>
__device__ void swiglu_packs(const T *x, T *y, i64 c, i64 rows, i64 x_step, i64 y_step) {
  unsigned per_row = (unsigned)c / N;
  EACH_OF_GRID(v, rows * per_row) {
    unsigned row = v / per_row, at = v - row * per_row;
    const T *from = x + row * x_step;
    Pack<T, N> a = load_pack<T, N>(from, at), b = load_pack<T, N>(from + c, at), out;
    EACH_IN_PACK(j) {
      float g = load(a.at[j]);
      store(out.at + j, g / (1 + __expf(-g)) * load(b.at[j]));
    }
    store_pack(y + row * y_step, at, out);
  }
}

template <class T> __device__ void swiglu(const T *x, T *y, i64 c, i64 rows, i64 x_step, i64 y_step) {
  if (packs_aligned<T>(c | x_step | y_step, (i64)x | (i64)y)) swiglu_packs<T, 16 / sizeof(T)>(x, y, c, rows, x_step, y_step);
  else swiglu_packs<T, 1>(x, y, c, rows, x_step, y_step);
}

// da = dy b s (1 + a (1 - s)), db = dy a s
template <class T, int N>
__device__ void swiglu_gradient_packs(const T *x, const T *dy, T *dx, i64 c, i64 rows, i64 x_step, i64 dy_step, i64 dx_step) {
  unsigned per_row = (unsigned)c / N;
  EACH_OF_GRID(v, rows * per_row) {
    unsigned row = v / per_row, at = v - row * per_row;
    const T *from = x + row * x_step;
    T *to = dx + row * dx_step;
    Pack<T, N> a = load_pack<T, N>(from, at), b = load_pack<T, N>(from + c, at), d = load_pack<T, N>(dy + row * dy_step, at), da, db;
    EACH_IN_PACK(j) {
      float g = load(a.at[j]), slope = load(d.at[j]), s = 1 / (1 + __expf(-g));
      store(da.at + j, slope * load(b.at[j]) * s * (1 + g * (1 - s)));
      store(db.at + j, slope * g * s);
    }
    store_pack(to, at, da);
    store_pack(to + c, at, db);
  }
}

template <class T>
__device__ void swiglu_gradient(const T *x, const T *dy, T *dx, i64 c, i64 rows, i64 x_step, i64 dy_step, i64 dx_step) {
  if (packs_aligned<T>(c | x_step | dy_step | dx_step, (i64)x | (i64)dy | (i64)dx))
    swiglu_gradient_packs<T, 16 / sizeof(T)>(x, dy, dx, c, rows, x_step, dy_step, dx_step);
  else swiglu_gradient_packs<T, 1>(x, dy, dx, c, rows, x_step, dy_step, dx_step);
}

#define EXPORT(T, t) extern "C" { \
  __global__ void swiglu_##t(const T *x, T *y, i64 c, i64 rows, i64 x_step, i64 y_step) { swiglu(x, y, c, rows, x_step, y_step); } \
  __global__ void swiglu_gradient_##t(const T *x, const T *dy, T *dx, i64 c, i64 rows, i64 x_step, i64 dy_step, i64 dx_step) { \
    swiglu_gradient(x, dy, dx, c, rows, x_step, dy_step, dx_step); \
  } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
