// Products of rows of half precision with A1 (x) A2 (x) A3, and their gradients. A block has one row, and a
// warp has two planes of it in registers. The factors are square, with N1 <= 8 and N2, N3 <= 16 rows and N3
// even, and stored transposed if `factors_transposed`.
//
// A row is N1 planes X(q) [N2, N3], each padded with zeros to a matrix of 16 x 16:
//
//   C = X A3'      D = A2 C      y(p) = sum_q A1[p, q] D(q)
//   H(q) = sum_p A1[p, q] dy(p)      dC = A2' H      dX = dC A3
//   dA1[p, q] = sum dy(p) D(q)      dA2 = sum H C'      dA3 = sum dC' X
//
// Tensor cores multiply numbers of 8 bits here. Finer numbers, the factors and the intermediates, are sums of
// two such numbers.
//
// A lane has columns 2g, 2g + 1, 2g + 8 and 2g + 9 of a tensor core's matrix. Here these columns stand for
// the neighbours 4g to 4g + 3 of a plane. A3 is read with its rows and columns in that order, so that no
// other code depends on it.
//
// Compiled for one dtype of rows, NUMBER, and sizes D = N1 + 256 N2 + 65536 N3. Comes after dtypes.cuh. Needs
// mma.sync on bfloat16: compute capability 8.0.

enum {
  N1 = D & 255, N2 = D >> 8 & 255, N3 = D >> 16 & 255, PLANE = N2 * N3, WIDTH = N1 * PLANE,
  // The offsets of the second and third factor among all entries.
  SECOND = N1 * N1, THIRD = SECOND + N2 * N2, ENTRIES = THIRD + N3 * N3,
  EXACT = BF16, THREADS = 128, WARPS = THREADS / 32, PLANES_PER_WARP = (N1 + WARPS - 1) / WARPS, PLANES = PLANES_PER_WARP * WARPS, SIDE = 16
};

__device__ u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000); }

// Two numbers of the dtype, packed.
__device__ u32 pack_number(float a, float b) {
  if (EXACT) return pack(a, b);
  u32 pair;
  store((NUMBER *)&pair, a); store((NUMBER *)&pair + 1, b);
  return pair;
}
__device__ float first_of(u32 pair) { return EXACT ? low(pair) : load(((const NUMBER *)&pair)[0]); }
__device__ float second_of(u32 pair) { return EXACT ? high(pair) : load(((const NUMBER *)&pair)[1]); }

// The transpose of 8 x 8 numbers. Four lanes have a row.
__device__ u32 transpose_8x8(u32 x) {
  u32 y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// c += a b for 16 x 16 and 16 x 8. Lane l has c[2i + j] at row l/4 + 8i, column 2 (l%4) + j.
__device__ void mma(float *c, const u32 *a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 x 16 sums: column 8j + 2 (l%4) + i%2 and row l/4 + 8 (i/2) at [j][i].
struct Sums {
  __align__(16) float at[2][4];
  __device__ Sums() { EACH(j, 2) EACH(i, 4) at[j][i] = 0; }
};

// 16 x 16 numbers as a first factor. highs[i] has row l/4 + 8 (i%2), columns 2 (l%4) + 8 (i/2) and the next;
// lows[i] the remainders.
struct Matrix {
  __align__(16) u32 highs[4], lows[4];
  __device__ Matrix() {}
  __device__ Matrix(const Sums &c) {
    EACH(i, 4) put(i, c.at[i / 2][i % 2 * 2], c.at[i / 2][i % 2 * 2 + 1]);
  }
  __device__ void put(int i, float a, float b) {
    highs[i] = pack(a, b);
    lows[i] = pack(a - low(highs[i]), b - high(highs[i]));
  }
  // Stores the matrix as this warp has it, for other warps.
  __device__ void keep(uint4 (*at)[32]) const {
    int lane = threadIdx.x & 31;
    at[0][lane] = *(const uint4 *)highs; at[1][lane] = *(const uint4 *)lows;
  }
  __device__ explicit Matrix(const uint4 (*at)[32]) {
    int lane = threadIdx.x & 31;
    *(uint4 *)highs = at[0][lane]; *(uint4 *)lows = at[1][lane];
  }
  // `rest`: whether the remainders are not zero.
  __device__ Matrix transposed(bool rest) const {
    Matrix t;
    EACH(i, 4) {
      const int from = i / 2 + i % 2 * 2;
      t.highs[i] = transpose_8x8(highs[from]);
      t.lows[i] = rest ? transpose_8x8(lows[from]) : 0;
    }
    return t;
  }
};

// c += a b', with the remainders of a and b if they have any.
template <bool REST_A, bool REST_B> __device__ void add_product(Sums &c, const Matrix &a, const Matrix &b) {
  EACH(j, 2) {
    if (REST_A) mma(c.at[j], a.lows, b.highs[j], b.highs[j + 2]);
    if (REST_B) mma(c.at[j], a.highs, b.lows[j], b.lows[j + 2]);
    mma(c.at[j], a.highs, b.highs[j], b.highs[j + 2]);
  }
}

// The column of a plane that is at a column of a tensor core's matrix, and the inverse.
__device__ int column(int c) { return c % 8 / 2 * 4 + c / 8 * 2 + c % 2; }
__device__ int place(int column) { return column / 4 * 2 + column / 2 % 2 * 8 + column % 2; }

// A lane's part of a plane of half precision: four columns of two rows, by pairs [row][pair].
struct Part {
  u32 at[2][2];
  // Loads the plane whose first number of this lane is at `from`.
  __device__ explicit Part(const NUMBER *from) {
    int row = (threadIdx.x & 31) / 4, begin = threadIdx.x % 4 * 4;
    EACH(r, 2) {
      const NUMBER *at_row = from + r * 8 * N3;
      bool has = row + r * 8 < N2;
      if (N3 % 4 == 0) {
        uint2 pairs = has && begin < N3 ? __ldg((const uint2 *)at_row) : make_uint2(0, 0);
        at[r][0] = pairs.x; at[r][1] = pairs.y;
      } else {
        EACH(h, 2) at[r][h] = has && begin + 2 * h < N3 ? __ldg((const u32 *)at_row + h) : 0;
      }
    }
  }
  __device__ Part() {}
  __device__ explicit Part(const Sums &x) {
    EACH(r, 2) EACH(h, 2) at[r][h] = pack_number(x.at[h][r * 2], x.at[h][r * 2 + 1]);
  }
  __device__ void write(NUMBER *to) const {
    int row = (threadIdx.x & 31) / 4, begin = threadIdx.x % 4 * 4;
    EACH(r, 2) {
      NUMBER *at_row = to + r * 8 * N3;
      if (row + r * 8 >= N2) continue;
      if (N3 % 4 == 0) {
        if (begin < N3) *(uint2 *)at_row = make_uint2(at[r][0], at[r][1]);
      } else {
        EACH(h, 2) if (begin + 2 * h < N3) ((u32 *)at_row)[h] = at[r][h];
      }
    }
  }
  __device__ Matrix matrix() const {
    Matrix m;
    EACH(i, 4) {
      u32 pair = at[i % 2][i / 2];
      if (EXACT) { m.highs[i] = pair; m.lows[i] = 0; }
      else m.put(i, first_of(pair), second_of(pair));
    }
    return m;
  }
};

// What all warps of a block read: A1, the other factors and their transposes, and the D of a row. Two buffers
// hold D, so that the next row does not wait for warps that still read this one.
struct Shared {
  float a1[N1][PLANES];
  uint4 factors[4][2][32];
  float4 planes[2][PLANES][2][32];

  __device__ void read(const float *first, const float *second, const float *third, bool factors_transposed) {
    auto entry = [&](const float *a, int n, int p, int q) { return p < n && q < n ? a[factors_transposed ? q * n + p : p * n + q] : 0; };
    for (int e = threadIdx.x; e < N1 * PLANES; e += THREADS) a1[e / PLANES][e % PLANES] = entry(first, N1, e / PLANES, e % PLANES);
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    Matrix m;
    EACH(i, 4) {
      int p = lane / 4 + i % 2 * 8, q = lane % 4 * 2 + i / 2 * 8;
      if (warp % 2) m.put(i, entry(third, N3, column(p), column(q)), entry(third, N3, column(p), column(q + 1)));
      else m.put(i, entry(second, N2, p, q), entry(second, N2, p, q + 1));
    }
    (warp < 2 ? m : m.transposed(true)).keep(factors[warp]);
    __syncthreads();
  }
  __device__ Matrix a2() const { return Matrix(factors[0]); }
  __device__ Matrix a3() const { return Matrix(factors[1]); }
  __device__ Matrix a2t() const { return Matrix(factors[2]); }
  __device__ Matrix a3t() const { return Matrix(factors[3]); }

  __device__ void keep(int buffer, int q, const Sums &d) {
    EACH(j, 2) planes[buffer][q][j][threadIdx.x & 31] = *(const float4 *)d.at[j];
  }
  // Writes the y(p) of a warp after all planes are stored.
  __device__ void write_product(int buffer, int first_plane, NUMBER *y) const {
    Sums sums[PLANES_PER_WARP];
    EACH(q, N1) EACH(j, 2) {
      float4 d = planes[buffer][q][j][threadIdx.x & 31];
      EACH(e, PLANES_PER_WARP) if (first_plane + e < N1) {
        float factor = a1[first_plane + e][q], *at = sums[e].at[j];
        at[0] += factor * d.x; at[1] += factor * d.y; at[2] += factor * d.z; at[3] += factor * d.w;
      }
    }
    EACH(e, PLANES_PER_WARP) if (first_plane + e < N1) Part(sums[e]).write(y + (first_plane + e) * PLANE);
  }
};

// Loads the planes of a row that this lane has. The first of them is at `from`.
__device__ void read(Part *planes, const NUMBER *from, int first_plane) {
  EACH(e, PLANES_PER_WARP) {
    if (first_plane + e < N1) planes[e] = Part(from + (first_plane + e) * PLANE);
    else EACH(i, 4) planes[e].at[i / 2][i % 2] = 0;
  }
}

// The offset of the first number of a plane that this lane has.
__device__ int begin() { return (threadIdx.x & 31) / 4 * N3 + threadIdx.x % 4 * 4; }

extern "C" __global__ void __launch_bounds__(THREADS, 6)
kronecker3_half(const NUMBER *x, const float *first, const float *second, const float *third, NUMBER *y, i64 rows, i64 factors_transposed) {
  __shared__ Shared shared;
  int first_plane = threadIdx.x / 32 * PLANES_PER_WARP, buffer = 0;
  x += begin(); y += begin();
  Part from[PLANES_PER_WARP];
  if (blockIdx.x < rows) read(from, x + (i64)blockIdx.x * WIDTH, first_plane);
  shared.read(first, second, third, factors_transposed);
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x, buffer ^= 1) {
    EACH(e, PLANES_PER_WARP) {
      Sums c, d;
      add_product<!EXACT, true>(c, from[e].matrix(), shared.a3());
      add_product<true, true>(d, shared.a2(), Matrix(c).transposed(true));
      shared.keep(buffer, first_plane + e, d);
    }
    if (row + gridDim.x < rows) read(from, x + (row + gridDim.x) * WIDTH, first_plane);
    __syncthreads();
    shared.write_product(buffer, first_plane, y + row * WIDTH);
  }
}

// The sum of v[p] over the lanes that differ in bits 2 to 4. The lane whose bits are p has the result.
__device__ float sums_over_lanes(float *v) {
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

// Writes dx, this block's part of the gradients of the factors, and y unless it is null. The parts are
// [blocks, entries].
extern "C" __global__ void __launch_bounds__(THREADS, 4)
kronecker3_half_gradient(const NUMBER *x, const float *first, const float *second, const float *third, const NUMBER *dy, NUMBER *dx,
                     NUMBER *y, float *partial, i64 rows, i64 factors_transposed) {
  __shared__ Shared shared;
  __shared__ float parts[WARPS][2 * SIDE * SIDE], firsts[8][PLANES];
  int first_plane = threadIdx.x / 32 * PLANES_PER_WARP, buffer = 0, lane = threadIdx.x & 31;
  bool with_product = y;
  x += begin(); dy += begin(); dx += begin(); y += begin();
  Part from[PLANES_PER_WARP];
  if (blockIdx.x < rows) read(from, x + (i64)blockIdx.x * WIDTH, first_plane);
  shared.read(first, second, third, factors_transposed);
  Sums da2, da3;
  float da1[PLANES_PER_WARP];
  EACH(e, PLANES_PER_WARP) da1[e] = 0;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x, buffer ^= 1) {
    Matrix between[PLANES_PER_WARP];
    Sums d[PLANES_PER_WARP], h[PLANES_PER_WARP];
    float dots[PLANES_PER_WARP][8];
    EACH(e, PLANES_PER_WARP) {
      Sums c;
      add_product<!EXACT, true>(c, from[e].matrix(), shared.a3());
      between[e] = Matrix(c);
      add_product<true, true>(d[e], shared.a2(), between[e].transposed(true));
      if (with_product) shared.keep(buffer, first_plane + e, d[e]);
    }
    EACH(e, PLANES_PER_WARP) EACH(p, 8) dots[e][p] = 0;
    EACH(p, N1) {
      Part slopes(dy + row * WIDTH + p * PLANE);
      EACH(i, 4) {
        u32 pair = slopes.at[i % 2][i / 2];
        EACH(k, 2) {
          float slope = k ? second_of(pair) : first_of(pair);
          EACH(e, PLANES_PER_WARP) {
            h[e].at[i / 2][i % 2 * 2 + k] += shared.a1[p][first_plane + e] * slope;
            dots[e][p] += slope * d[e].at[i / 2][i % 2 * 2 + k];
          }
        }
      }
    }
    EACH(e, PLANES_PER_WARP) {
      da1[e] += sums_over_lanes(dots[e]);
      Matrix slope(h[e]);
      Sums dc, back;
      add_product<true, true>(dc, shared.a2t(), slope.transposed(true));
      add_product<true, true>(da2, slope, between[e]);
      Matrix inner(dc);
      add_product<true, true>(back, inner, shared.a3t());
      add_product<true, !EXACT>(da3, inner.transposed(true), from[e].matrix().transposed(!EXACT));
      if (first_plane + e < N1) Part(back).write(dx + row * WIDTH + (first_plane + e) * PLANE);
    }
    if (row + gridDim.x < rows) read(from, x + (row + gridDim.x) * WIDTH, first_plane);
    if (with_product) {
      __syncthreads();
      shared.write_product(buffer, first_plane, y + row * WIDTH);
    }
  }
  // Sums the parts of the warps, in order.
  EACH(e, PLANES_PER_WARP) {
    float v = da1[e];
    v += __shfl_xor_sync(~0u, v, 1); v += __shfl_xor_sync(~0u, v, 2);
    int p = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
    if (lane % 4 == 0) firsts[p][first_plane + e] = v;
  }
  float *part = parts[threadIdx.x / 32];
  EACH(j, 2) EACH(i, 4) {
    int e = (lane / 4 + i / 2 * 8) * SIDE + j * 8 + lane % 4 * 2 + i % 2;
    part[e] = da2.at[j][i];
    part[SIDE * SIDE + e] = da3.at[j][i];
  }
  __syncthreads();
  for (int e = threadIdx.x; e < ENTRIES; e += THREADS) {
    int begin = e < SECOND ? 0 : e < THIRD ? SECOND : THIRD, n = e < SECOND ? N1 : e < THIRD ? N2 : N3;
    int p = (e - begin) / n, q = (e - begin) % n;
    if (factors_transposed) { int swap = p; p = q; q = swap; }
    float v = 0;
    if (e < SECOND) v = firsts[p][q];
    else EACH(w, WARPS) v += parts[w][e < THIRD ? p * SIDE + q : SIDE * SIDE + place(p) * SIDE + place(q)];
    partial[(i64)blockIdx.x * ENTRIES + e] = v;
  }
}

// Sums the parts of all blocks, 32 entries in a block: a warp sums those of each 32nd block, then all of an
// entry.
extern "C" __global__ void __launch_bounds__(1024)
kronecker3_half_gradient_sums(const float *partial, float *da1, float *da2, float *da3, i64 blocks) {
  __shared__ float parts[32][33];
  int lane = threadIdx.x & 31, warp = threadIdx.x / 32, e = blockIdx.x * 32 + lane;
  float v = 0;
  if (e < ENTRIES) {
    #pragma unroll 16
    for (i64 k = warp; k < blocks; k += 32) v += partial[k * ENTRIES + e];
  }
  parts[warp][lane] = v;
  __syncthreads();
  v = parts[lane][warp];
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  e = blockIdx.x * 32 + warp;
  if (lane > 0 || e >= ENTRIES) return;
  if (e < SECOND) da1[e] = v;
  else if (e < THIRD) da2[e - SECOND] = v;
  else da3[e - THIRD] = v;
}
