// Products of rows of `width` = n1 ... nm numbers with A1 (x) ... (x) Am, square factors of at most 16 rows,
// m <= 4, and their gradients.
//
// `sizes` holds the size of a factor in each byte, the first in the lowest. `a` holds the factors one behind
// the other, transposed if `factors_transposed`. `group` rows at a time pass through all m products in shared
// memory.
//
// A factor of size n acts on fibers, whose n numbers are one stride apart, and is padded to 16 x 16 on a
// tensor core.
//
// Tensor cores multiply numbers of 11 bits (TF32). Factors and float rows are sums of two such numbers, with
// an error no larger than float's own rounding (Ootomo and Yokota, arXiv 2203.03341). Rows of 8 or 11 bits
// are one such number, and keep 11 bits between the products.
//
// Compiled for one dtype of rows, NUMBER. Comes after dtypes.cuh. Needs mma.sync on TF32: compute capability
// 8.0.

enum { EXACT = sizeof(NUMBER) == 4, THREADS = 128, WARPS = THREADS / 32, SIDE = 16, MOST = 4 };

extern __shared__ float memory[];

__device__ u32 tf32(float x) { u32 y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }

// A float as the sum of two TF32 numbers.
struct Split {
  u32 high, low;
  __device__ Split() {}
  __device__ Split(float x) : high(tf32(x)), low(tf32(x - __uint_as_float(high))) {}
};

__device__ void mma(float *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c += a b for 16 x 8 and 8 x 8. Lane l has a[i + 2j] at row l/4 + 8i, column l%4 + 4j; b[i] at row l%4 + 4i,
// column l/4; and c[2i + j] at row l/4 + 8i, column 2 (l%4) + j.
__device__ void mma_high(float *c, const Split *a, const Split *b) {
  mma(c, a[0].high, a[1].high, a[2].high, a[3].high, b[0].high, b[1].high);
}
__device__ void mma_low_left(float *c, const Split *a, const Split *b) {
  mma(c, a[0].low, a[1].low, a[2].low, a[3].low, b[0].high, b[1].high);
}
__device__ void mma_low_right(float *c, const Split *a, const Split *b) {
  mma(c, a[0].high, a[1].high, a[2].high, a[3].high, b[0].low, b[1].low);
}

// x / n for the small integers here. The half keeps the rounded quotient away from integers.
struct Divide {
  float inverse;
  __device__ Divide(int n) : inverse(1.0f / n) {}
  __device__ int operator()(int x) const { return __float2int_rd((x + 0.5f) * inverse); }
};

struct Kronecker {
  int count, width, entries, room, last, gap;
  int size[MOST], at[MOST], after[MOST];
  float *matrix, *buffers;

  __device__ Kronecker(const float *a, i64 width, i64 sizes, i64 factors_transposed, i64 group) : count(0), width((int)width), entries(0) {
    EACH(i, MOST) {
      size[i] = (int)(sizes >> (8 * i)) & 255;
      at[i] = entries; entries += size[i] * size[i];
      if (size[i] > 0) { count++; last = size[i]; }
    }
    int rest = this->width;
    EACH(i, MOST) after[i] = i < count ? rest /= size[i] : 1;
    // The last axis is padded to an odd length, so that its fibers begin in different banks.
    gap = 1 - last % 2;
    room = (int)group * this->width / last * (last + gap);
    matrix = memory; buffers = matrix + count * SIDE * SIDE;
    EACH(i, MOST) if (i < count)
      for (int e = threadIdx.x; e < SIDE * SIDE; e += THREADS) {
        int p = e / SIDE, q = e % SIDE, n = size[i];
        matrix[i * SIDE * SIDE + e] = p < n && q < n ? a[at[i] + (factors_transposed ? q * n + p : p * n + q)] : 0;
      }
    __syncthreads();
  }

  __device__ float *buffer(int i) const { return buffers + i * room; }

  // The fibers of an axis.
  struct Axis {
    int n, step, span, plain, gap;
    Divide by_step, by_last;
    __device__ Axis(const Kronecker &t, int i)
      : n(t.size[i]), plain(t.after[i]), gap(t.gap), by_step(t.after[i]), by_last(t.last) {
      bool inner = i + 1 == t.count;
      step = inner ? 1 : plain / t.last * (t.last + gap);
      span = inner ? t.last + gap : n * step;
      if (inner) gap = 0;
    }
    __device__ int begin(int fiber) const {
      int outer = by_step(fiber), rest = fiber - outer * plain;
      return outer * span + rest + by_last(rest) * gap;
    }
    // An index past the end of a fiber maps to its first number.
    __device__ int offset(int p) const { return p < n ? p * step : 0; }
  };

  // to = Mi from, or its transpose, along axis i of `rows` rows
  __device__ void product(int i, bool transposed, const float *from, float *to, int rows) const {
    Axis axis(*this, i);
    int lane = threadIdx.x & 31, x = lane / 4, y = lane % 4, fibers = rows * width / axis.n;
    bool deep = axis.n > 8;
    const float *m = matrix + i * SIDE * SIDE;
    Split b[2][2][2];
    EACH(k, 2) EACH(t, 2) EACH(e, 2) {
      int q = k * 8 + y + 4 * e, p = t * 8 + x;
      b[k][t][e] = Split(m[transposed ? q * SIDE + p : p * SIDE + q]);
    }
    int in[2][2];
    EACH(k, 2) EACH(e, 2) in[k][e] = axis.offset(k * 8 + y + 4 * e);
    for (int first = threadIdx.x / 32 * 16; first < fibers; first += WARPS * 16) {
      float c[2][4];
      EACH(t, 2) EACH(e, 4) c[t][e] = 0;
      int begin[2];
      EACH(r, 2) begin[r] = axis.begin(min(first + x + 8 * r, fibers - 1));
      EACH(k, 2) if (k == 0 || deep) {
        Split a[4];
        EACH(e, 2) EACH(r, 2) {
          float value = from[begin[r] + in[k][e]];
          if (EXACT) a[r + 2 * e] = Split(value); else a[r + 2 * e].high = tf32(value);
        }
        EACH(t, 2) if (t == 0 || deep) {
          if (EXACT) mma_low_left(c[t], a, b[k][t]);
          mma_low_right(c[t], a, b[k][t]);
          mma_high(c[t], a, b[k][t]);
        }
      }
      EACH(r, 2) if (first + x + 8 * r < fibers) EACH(t, 2) EACH(e, 2) {
        int p = t * 8 + 2 * y + e;
        if (p < axis.n) to[begin[r] + p * axis.step] = c[t][2 * r + e];
      }
    }
    __syncthreads();
  }

  // sums += slope argument' over the fibers of axis i: this warp's part of the 16 x 16 sums, in two halves of
  // its columns
  __device__ void gradient(int i, const float *slope, const float *argument, int rows, float (*sums)[4]) const {
    Axis axis(*this, i);
    int lane = threadIdx.x & 31, x = lane / 4, y = lane % 4, fibers = rows * width / axis.n;
    bool deep = axis.n > 8;
    int at[2];
    EACH(e, 2) at[e] = axis.offset(x + 8 * e);
    for (int first = threadIdx.x / 32 * 8; first < fibers; first += WARPS * 8) {
      Split a[4], b[4];
      EACH(j, 2) {
        int fiber = first + y + 4 * j, begin = axis.begin(min(fiber, fibers - 1));
        EACH(e, 2) {
          float s = 0, v = 0;
          if (fiber < fibers && (e == 0 || deep)) { s = slope[begin + at[e]]; v = argument[begin + at[e]]; }
          if (EXACT) { a[e + 2 * j] = Split(s); b[2 * e + j] = Split(v); }
          else { a[e + 2 * j].high = tf32(s); b[2 * e + j].high = tf32(v); }
        }
      }
      EACH(t, 2) if (t == 0 || deep) {
        if (EXACT) { mma_low_left(sums[t], a, b + 2 * t); mma_low_right(sums[t], a, b + 2 * t); }
        mma_high(sums[t], a, b + 2 * t);
      }
    }
    __syncthreads();
  }

  // Rows are contiguous, and are read and written 16 bytes at a time if they are aligned.
  enum { PACK = 16 / sizeof(NUMBER) };
  __device__ bool aligned(const NUMBER *x, int rows) const {
    return rows * width % PACK == 0 && ((i64)x & 15) == 0;
  }

  __device__ void read(const NUMBER *from, float *to, int rows) const {
    Divide by_last(last);
    if (aligned(from, rows)) {
      #pragma unroll 4
      for (int v = threadIdx.x; v < rows * width / PACK; v += THREADS) {
        uint4 pack = __ldg((const uint4 *)from + v);
        EACH(j, PACK) { int k = v * PACK + j; to[k + by_last(k) * gap] = load(((const NUMBER *)&pack)[j]); }
      }
    } else
      for (int k = threadIdx.x; k < rows * width; k += THREADS) to[k + by_last(k) * gap] = load(from[k]);
    __syncthreads();
  }

  __device__ void write(const float *from, NUMBER *to, int rows) const {
    Divide by_last(last);
    if (aligned(to, rows))
      for (int v = threadIdx.x; v < rows * width / PACK; v += THREADS) {
        uint4 pack;
        EACH(j, PACK) { int k = v * PACK + j; store((NUMBER *)&pack + j, from[k + by_last(k) * gap]); }
        ((uint4 *)to)[v] = pack;
      }
    else
      for (int k = threadIdx.x; k < rows * width; k += THREADS) store(to + k, from[k + by_last(k) * gap]);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
kronecker(const NUMBER *x, const float *a, NUMBER *y, i64 rows, i64 width, i64 sizes, i64 factors_transposed, i64 group) {
  Kronecker t(a, width, sizes, factors_transposed, group);
  i64 first = blockIdx.x * group;
  int block_rows = (int)min(group, rows - first);
  float *from = t.buffer(0), *to = t.buffer(1);
  t.read(x + first * width, from, block_rows);
  EACH(j, MOST) {
    const int i = MOST - 1 - j;
    if (i >= t.count) continue;
    t.product(i, false, from, to, block_rows);
    float *swap = from; from = to; to = swap;
  }
  t.write(from, y + first * width, block_rows);
}

// Writes dx unless it is null, and this block's part of the gradients of the factors.
extern "C" __global__ void __launch_bounds__(THREADS)
kronecker_gradient(const NUMBER *x, const float *a, const NUMBER *dy, NUMBER *dx, float *partial, i64 rows, i64 width, i64 sizes,
              i64 factors_transposed, i64 group) {
  Kronecker t(a, width, sizes, factors_transposed, group);
  float sums[MOST][2][4];
  EACH(i, MOST) EACH(h, 2) EACH(e, 4) sums[i][h][e] = 0;
  for (i64 first = blockIdx.x * group; first < rows; first += gridDim.x * group) {
    int block_rows = (int)min(group, rows - first);
    // Buffer i is the operand of Mi.
    t.read(x + first * width, t.buffer(t.count - 1), block_rows);
    EACH(j, MOST - 1) {
      const int i = MOST - 1 - j;
      if (i < t.count) t.product(i, false, t.buffer(i), t.buffer(i - 1), block_rows);
    }
    float *slope = t.buffer(t.count);
    t.read(dy + first * width, slope, block_rows);
    EACH(i, MOST) if (i < t.count) {
      t.gradient(i, slope, t.buffer(i), block_rows, sums[i]);
      if (dx || i + 1 < t.count) { t.product(i, true, slope, t.buffer(i), block_rows); slope = t.buffer(i); }
    }
    if (dx) t.write(slope, dx + first * width, block_rows);
    __syncthreads();
  }
  // Sums the parts of the warps, in order.
  int lane = threadIdx.x & 31;
  float *part = t.buffers + threadIdx.x / 32 * SIDE * SIDE;
  EACH(i, MOST) if (i < t.count) {
    EACH(h, 2) EACH(e, 4) part[(lane / 4 + e / 2 * 8) * SIDE + h * 8 + lane % 4 * 2 + e % 2] = sums[i][h][e];
    __syncthreads();
    int n = t.size[i];
    for (int e = threadIdx.x; e < n * n; e += THREADS) {
      float s = 0;
      EACH(w, WARPS) s += t.buffers[w * SIDE * SIDE + e / n * SIDE + e % n];
      partial[blockIdx.x * (i64)t.entries + t.at[i] + (factors_transposed ? e % n * n + e / n : e)] = s;
    }
    __syncthreads();
  }
}

// Sums the parts of all blocks, with one warp for each entry.
extern "C" __global__ void kronecker_gradient_sums(const float *partial, float *da, i64 entries, i64 blocks) {
  float s = 0;
  for (i64 k = threadIdx.x; k < blocks; k += 32) s += partial[k * entries + blockIdx.x];
  for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (threadIdx.x == 0) da[blockIdx.x] = s;
}
