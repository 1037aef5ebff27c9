// Products with A1 (x) A2 (x) A3 on rows of half precision, and their gradients: a block has a row, a warp two planes of it, in
// registers. The factors are square, of n1 <= 8 and n2, n3 <= 16 rows, n3 even, and lie transposed if `flipped`.
//
// A row is n1 planes X(q) [n2, n3], each a matrix of 16 x 16 with zeros behind:
//
//   C = X A3'      D = A2 C      y(p) = sum_q A1[p, q] D(q)
//   H(q) = sum_p A1[p, q] dy(p)      dC = A2' H      dX = dC A3
//   dA1[p, q] = sum dy(p) D(q)      dA2 = sum H C'      dA3 = sum dC' X
//
// Tensor cores multiply numbers of 8 bits here. What is finer than that, the factors and what lies between the products, is
// the sum of two of them.
//
// Compiled for one type of rows, NUMBER. Comes after numbers.cu. Needs mma.sync on bfloat16: compute capability 8.0.

typedef unsigned u32;
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
enum { EXACT = BF16, THREADS = 128, WARPS = THREADS / 32, MOST = 8, OWN = MOST / WARPS, SIDE = 16 };

__device__ u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000); }

// Eight by eight numbers, a row for each four lanes, and their transpose.
__device__ u32 turned(u32 x) {
  u32 y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// c += a b for 16 x 16 and 16 x 8. Lane l has c[2i + j] at row l/4 + 8i, column 2 (l%4) + j.
__device__ void mma(float *c, const u32 *a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 x 16 sums: column 8j + 2 (l%4) + i%2 and row l/4 + 8 (i/2) at [j][i].
struct Sums {
  __align__(16) float at[2][4];
  __device__ Sums() { EACH(j, 2) EACH(i, 4) at[j][i] = 0; }
};

// 16 x 16 as a first factor: row l/4 + 8 (i%2), columns 2 (l%4) + 8 (i/2) and the next, in tops[i], and what those leave.
struct Matrix {
  __align__(16) u32 tops[4], rests[4];
  __device__ Matrix() {}
  __device__ Matrix(const Sums &c) {
    EACH(i, 4) put(i, c.at[i / 2][i % 2 * 2], c.at[i / 2][i % 2 * 2 + 1]);
  }
  __device__ void put(int i, float a, float b) {
    tops[i] = pack(a, b);
    rests[i] = pack(a - low(tops[i]), b - high(tops[i]));
  }
  // As a warp has it, for others.
  __device__ void keep(uint4 (*at)[32]) const {
    int lane = threadIdx.x & 31;
    at[0][lane] = *(const uint4 *)tops; at[1][lane] = *(const uint4 *)rests;
  }
  __device__ explicit Matrix(const uint4 (*at)[32]) {
    int lane = threadIdx.x & 31;
    *(uint4 *)tops = at[0][lane]; *(uint4 *)rests = at[1][lane];
  }
  // `rest`: whether there is any.
  __device__ Matrix transposed(bool rest) const {
    Matrix t;
    EACH(i, 4) {
      const int from = i / 2 + i % 2 * 2;
      t.tops[i] = turned(tops[from]);
      t.rests[i] = rest ? turned(rests[from]) : 0;
    }
    return t;
  }
};

// c += a b', with what a and b leave where they have it.
template <bool REST_A, bool REST_B> __device__ void add_product(Sums &c, const Matrix &a, const Matrix &b) {
  EACH(j, 2) {
    if (REST_A) mma(c.at[j], a.rests, b.tops[j], b.tops[j + 2]);
    if (REST_B) mma(c.at[j], a.tops, b.rests[j], b.rests[j + 2]);
    mma(c.at[j], a.tops, b.tops[j], b.tops[j + 2]);
  }
}

struct Shape {
  int n1, n2, n3, lane;
  bool flipped;
  __device__ Shape(i64 sizes, i64 flipped)
    : n1((int)sizes & 255), n2((int)(sizes >> 8) & 255), n3((int)(sizes >> 16) & 255), lane(threadIdx.x & 31), flipped(flipped) {}
  __device__ int width() const { return n1 * n2 * n3; }
  __device__ int entries() const { return n1 * n1 + n2 * n2 + n3 * n3; }
  __device__ float entry(const float *a, int n, int p, int q) const {
    return p < n && q < n ? a[flipped ? q * n + p : p * n + q] : 0;
  }
  __device__ Matrix factor(const float *a, int n) const {
    Matrix m;
    EACH(i, 4) {
      int p = lane / 4 + i % 2 * 8, q = lane % 4 * 2 + i / 2 * 8;
      m.put(i, entry(a, n, p, q), entry(a, n, p, q + 1));
    }
    return m;
  }
  // Where a plane's pair i lies, and whether it does.
  __device__ int offset(int i) const { return (lane / 4 + i % 2 * 8) * n3 + lane % 4 * 2 + i / 2 * 8; }
  __device__ bool has(int i) const { return lane / 4 + i % 2 * 8 < n2 && lane % 4 * 2 + i / 2 * 8 < n3; }
  __device__ Matrix read(const NUMBER *row, int q) const {
    Matrix m;
    EACH(i, 4) {
      u32 pair = q < n1 && has(i) ? __ldg((const u32 *)(row + q * n2 * n3 + offset(i))) : 0;
      if (EXACT) { m.tops[i] = pair; m.rests[i] = 0; }
      else { const NUMBER *x = (const NUMBER *)&pair; m.put(i, load(x[0]), load(x[1])); }
    }
    return m;
  }
  __device__ void write(NUMBER *row, int q, const Sums &x) const {
    EACH(i, 4) if (q < n1 && has(i)) {
      u32 pair;
      EACH(e, 2) store((NUMBER *)&pair + e, x.at[i / 2][i % 2 * 2 + e]);
      *(u32 *)(row + q * n2 * n3 + offset(i)) = pair;
    }
  }
};

// What all warps of a block need: A1, the other factors as they are and transposed, and the D of a row, one after the other in
// two places, so that the next row's need not wait for who still reads this one's.
struct Shared {
  float a1[MOST][MOST];
  uint4 factors[4][2][32];
  float4 planes[2][MOST][2][32];

  __device__ void read(const float *first, const float *second, const float *third, const Shape &s) {
    for (int e = threadIdx.x; e < MOST * MOST; e += THREADS) a1[e / MOST][e % MOST] = s.entry(first, s.n1, e / MOST, e % MOST);
    int warp = threadIdx.x / 32;
    Matrix m = warp % 2 ? s.factor(third, s.n3) : s.factor(second, s.n2);
    (warp < 2 ? m : m.transposed(true)).keep(factors[warp]);
    __syncthreads();
  }
  __device__ Matrix a2() const { return Matrix(factors[0]); }
  __device__ Matrix a3() const { return Matrix(factors[1]); }
  __device__ Matrix a2t() const { return Matrix(factors[2]); }
  __device__ Matrix a3t() const { return Matrix(factors[3]); }

  __device__ void keep(int turn, int q, const Sums &d, int lane) {
    EACH(j, 2) planes[turn][q][j][lane] = *(const float4 *)d.at[j];
  }
  // y(p), once all planes are there.
  __device__ Sums mixed(int turn, int p, int n1, int lane) const {
    Sums y;
    for (int q = 0; q < n1; q++) {
      float factor = a1[p][q];
      EACH(j, 2) {
        float4 d = planes[turn][q][j][lane];
        y.at[j][0] += factor * d.x; y.at[j][1] += factor * d.y; y.at[j][2] += factor * d.z; y.at[j][3] += factor * d.w;
      }
    }
    return y;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 6)
turn_planes(const NUMBER *x, const float *first, const float *second, const float *third, NUMBER *y, i64 rows, i64 sizes, i64 flipped) {
  __shared__ Shared shared;
  Shape s(sizes, flipped);
  shared.read(first, second, third, s);
  int own = threadIdx.x / 32 * OWN, turn = 0;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    i64 at = row * s.width();
    Matrix from[OWN];
    EACH(e, OWN) from[e] = s.read(x + at, own + e);
    EACH(e, OWN) if (own + e < s.n1) {
      Sums c, d;
      add_product<!EXACT, true>(c, from[e], shared.a3());
      add_product<true, true>(d, shared.a2(), Matrix(c).transposed(true));
      shared.keep(turn, own + e, d, s.lane);
    }
    __syncthreads();
    EACH(e, OWN) if (own + e < s.n1) s.write(y + at, own + e, shared.mixed(turn, own + e, s.n1, s.lane));
  }
}

// v[p] summed over the lanes that differ in bits 2 to 4, which are p for who has it.
__device__ float scattered(float *v) {
  int lane = threadIdx.x & 31;
  EACH(step, 3) {
    const int half = 4 >> step, bit = 16 >> step;
    bool upper = lane & bit;
    EACH(p, half) {
      float kept = upper ? v[p + half] : v[p], given = upper ? v[p] : v[p + half];
      v[p] = kept + __shfl_xor_sync(~0u, given, bit);
    }
  }
  return v[0];
}

// dx, this block's part of the factors' gradients, and y once more unless it is null. Parts lie [entries, blocks].
extern "C" __global__ void __launch_bounds__(THREADS, 4)
turn_planes_gradient(const NUMBER *x, const float *first, const float *second, const float *third, const NUMBER *dy, NUMBER *dx,
                     NUMBER *y, float *partial, i64 rows, i64 sizes, i64 flipped) {
  __shared__ Shared shared;
  __shared__ float parts[WARPS][2 * SIDE * SIDE], firsts[MOST][MOST];
  Shape s(sizes, flipped);
  shared.read(first, second, third, s);
  int own = threadIdx.x / 32 * OWN, turn = 0;
  Sums da2, da3;
  float da1[OWN];
  EACH(e, OWN) da1[e] = 0;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    i64 at = row * s.width();
    u32 slopes[MOST][4];
    EACH(p, MOST) EACH(i, 4) slopes[p][i] = p < s.n1 && s.has(i) ? __ldg((const u32 *)(dy + at + p * s.n2 * s.n3 + s.offset(i))) : 0;
    EACH(e, OWN) if (own + e < s.n1) {
      int q = own + e;
      Matrix from = s.read(x + at, q);
      Sums c, d, h;
      add_product<!EXACT, true>(c, from, shared.a3());
      Matrix between(c);
      add_product<true, true>(d, shared.a2(), between.transposed(true));
      if (y) shared.keep(turn, q, d, s.lane);
      float dots[MOST];
      EACH(p, MOST) {
        dots[p] = 0;
        float factor = shared.a1[p][q];
        EACH(i, 4) EACH(k, 2) {
          const NUMBER *pair = (const NUMBER *)&slopes[p][i];
          float slope = EXACT ? (k ? high(slopes[p][i]) : low(slopes[p][i])) : load(pair[k]), value = d.at[i / 2][i % 2 * 2 + k];
          h.at[i / 2][i % 2 * 2 + k] += factor * slope;
          dots[p] += slope * value;
        }
      }
      da1[e] += scattered(dots);
      Matrix slope(h);
      Sums dc, back;
      add_product<true, true>(dc, shared.a2t(), slope.transposed(true));
      add_product<true, true>(da2, slope, between);
      Matrix inner(dc);
      add_product<true, true>(back, inner, shared.a3t());
      add_product<true, !EXACT>(da3, inner.transposed(true), from.transposed(!EXACT));
      s.write(dx + at, q, back);
    }
    if (y) {
      __syncthreads();
      EACH(e, OWN) if (own + e < s.n1) s.write(y + at, own + e, shared.mixed(turn, own + e, s.n1, s.lane));
    }
  }
  // The parts of the warps, one after the other.
  EACH(e, OWN) {
    float v = da1[e];
    v += __shfl_xor_sync(~0u, v, 1); v += __shfl_xor_sync(~0u, v, 2);
    int p = (s.lane >> 4 & 1) * 4 + (s.lane >> 3 & 1) * 2 + (s.lane >> 2 & 1);
    if (s.lane % 4 == 0) firsts[p][own + e] = v;
  }
  float *part = parts[threadIdx.x / 32];
  EACH(j, 2) EACH(i, 4) {
    int e = (s.lane / 4 + i / 2 * 8) * SIDE + j * 8 + s.lane % 4 * 2 + i % 2;
    part[e] = da2.at[j][i];
    part[SIDE * SIDE + e] = da3.at[j][i];
  }
  __syncthreads();
  for (int e = threadIdx.x; e < s.entries(); e += THREADS) {
    int second_begin = s.n1 * s.n1, third_begin = second_begin + s.n2 * s.n2;
    int begin = e < second_begin ? 0 : e < third_begin ? second_begin : third_begin;
    int n = e < second_begin ? s.n1 : e < third_begin ? s.n2 : s.n3;
    int p = (e - begin) / n, q = (e - begin) % n;
    if (s.flipped) { int swap = p; p = q; q = swap; }
    float v = 0;
    if (e < second_begin) v = firsts[p][q];
    else EACH(w, WARPS) v += parts[w][(e < third_begin ? 0 : SIDE * SIDE) + p * SIDE + q];
    partial[(i64)e * gridDim.x + blockIdx.x] = v;
  }
}

// One warp an entry: the sum over all blocks.
extern "C" __global__ void turn_planes_sums(const float *partial, float *da1, float *da2, float *da3, i64 second, i64 third, i64 blocks) {
  float s = 0;
  for (i64 k = threadIdx.x; k < blocks; k += 32) s += partial[blockIdx.x * blocks + k];
  for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (threadIdx.x > 0) return;
  int e = blockIdx.x;
  if (e < second) da1[e] = s;
  else if (e < third) da2[e - second] = s;
  else da3[e - third] = s;
}
