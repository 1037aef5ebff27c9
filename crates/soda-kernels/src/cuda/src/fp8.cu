// Factors of products in E4M3: rows that are rounded to it, and the codes of a weight transposed, since
// tensor cores read 8 bits along the sum only. Comes after packs.cuh.

// The codes of two numbers, the first in the lower byte. Ties to even mantissas, as quantize/format.rs.
__device__ unsigned e4m3x2(float low, float high) {
#if __CUDA_ARCH__ >= 890
  unsigned short codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  return 0; // Not launched on chips without the instruction.
#endif
}

// Eight neighbours, at once if they lie so.
template <class T> __device__ Pack<T, 8> load_octet(const T *x, unsigned v) {
  const int N = 8;
  if (((i64)x & (sizeof(Pack<T, N>) - 1)) == 0) return load_pack<T, N>(x, v);
  Pack<T, N> pack;
  EACH_IN_PACK(j) pack.at[j] = x[v * N + j];
  return pack;
}

// The codes of the rows of x [rows, n], and their scales: the largest magnitude over 448. With `by`, of x
// times a factor for each column. A block has a row; n is a multiple of 8.
template <class T> __device__ void quantize_rows(const T *x, const float *by, uint2 *codes, float *scales, i64 n) {
  const int N = 8;
  x += blockIdx.x * n;
  codes += blockIdx.x * (n / N);
  float values[N], peak = 0;
  auto read = [&](unsigned v) {
    Pack<T, N> in = load_octet(x, v);
    EACH_IN_PACK(j) values[j] = load(in.at[j]);
    if (by) {
      Pack<float, N> factor = load_octet(by, v);
      EACH_IN_PACK(j) values[j] *= factor.at[j];
    }
  };
  for (unsigned v = threadIdx.x; v < n / N; v += blockDim.x) {
    read(v);
    EACH_IN_PACK(j) peak = fmaxf(peak, fabsf(values[j]));
  }
  // A row of zeros has no scale.
  float scale = fmaxf(reduce<Max>(peak, 0, blockDim.x) / 448, 1.17549435e-38f), inverse = 1 / scale;
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  for (unsigned v = threadIdx.x; v < n / N; v += blockDim.x) {
    read(v);
    EACH_IN_PACK(j) values[j] *= inverse;
    uint2 out;
    out.x = e4m3x2(values[0], values[1]) | e4m3x2(values[2], values[3]) << 16;
    out.y = e4m3x2(values[4], values[5]) | e4m3x2(values[6], values[7]) << 16;
    codes[v] = out;
  }
}

// y [rows, n] times a factor for each row and each column, in place. X is the type that y is read as, of the
// size of T. n is a multiple of 8.
template <class X, class T> __device__ void scale_product(T *y, const float *row_factors, const float *column_factors, i64 rows, i64 n) {
  const int N = 8;
  unsigned per_row = (unsigned)(n / N);
  EACH_OF_GRID(v, rows * per_row) {
    unsigned row = v / per_row;
    float factor = row_factors[row];
    Pack<X, N> in = load_octet((const X *)y, v);
    Pack<float, N> factors = load_octet(column_factors, v - row * per_row);
    Pack<T, N> out;
    EACH_IN_PACK(j) store(out.at + j, load(in.at[j]) * factor * factors.at[j]);
    store_pack(y, v, out);
  }
}

#define EXPORT(T, X, t) extern "C" { \
  __global__ void quantize_rows_##t(const T *x, const float *by, uint2 *codes, float *scales, i64 n) { quantize_rows(x, by, codes, scales, n); } \
  __global__ void scale_product_##t(T *y, const float *row_factors, const float *column_factors, i64 rows, i64 n) { scale_product<X>(y, row_factors, column_factors, rows, n); } \
}
EXPORT(float, float, f32)
EXPORT(bf16, bf16, bf16)
EXPORT(f16, bf16, f16)
#undef EXPORT

// Transposes bytes [rows, columns], both multiples of 4, in tiles of 128 x 128 by 256 threads. Every column
// of the source gets the scale 1.
extern "C" __global__ void transpose_codes(const unsigned *x, unsigned *y, float *ones, i64 rows, i64 columns) {
  // Word `w` of a column has its rows 4 w to 4 w + 3.
  __shared__ unsigned tile[128][33];
  i64 row = blockIdx.y * 128, column = blockIdx.x * 128;
  unsigned lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  EACH(i, 4) {
    unsigned w = warp + 8 * i;
    i64 r = row + 4 * w, c = column + 4 * lane;
    if (r < rows && c < columns) {
      unsigned a[4];
      EACH(k, 4) a[k] = x[((r + k) * columns + c) / 4];
      unsigned low01 = __byte_perm(a[0], a[1], 0x5140), low23 = __byte_perm(a[2], a[3], 0x5140);
      unsigned high01 = __byte_perm(a[0], a[1], 0x7362), high23 = __byte_perm(a[2], a[3], 0x7362);
      tile[4 * lane][w] = __byte_perm(low01, low23, 0x5410);
      tile[4 * lane + 1][w] = __byte_perm(low01, low23, 0x7632);
      tile[4 * lane + 2][w] = __byte_perm(high01, high23, 0x5410);
      tile[4 * lane + 3][w] = __byte_perm(high01, high23, 0x7632);
    }
  }
  __syncthreads();
  EACH(i, 16) {
    unsigned k = warp + 8 * i;
    i64 c = column + k, r = row + 4 * lane;
    if (c < columns && r < rows) y[(c * rows + r) / 4] = tile[k][lane];
  }
  i64 c = column + threadIdx.x;
  if (blockIdx.y == 0 && threadIdx.x < 128 && c < columns) ones[c] = 1;
}
