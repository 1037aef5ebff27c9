// Attention in tiles that never leave the chip, both passes (Dao, FlashAttention-2, arXiv 2307.08691).
//
//   s = c q k'      p = 2^(s - L)      o = p v      L = log2 sum 2^s      c = scale log2(e)
//   delta = rowsum(do o)      ds = p (do v' - delta)
//   dq = scale ds k      dk = scale ds' q      dv = p' do
//
// One kernel iterates over the keys for a block of queries, in the forward pass and for dq. Another iterates
// over the queries for a block of keys, for dk and dv. The scores are computed once more than with sums over
// blocks in global memory, but every run gives the same bits.
//
// Sums are in float. Comes after attention.cuh. Needs mma.sync on 16-bit numbers and cp.async: compute
// capability 8.0. No header.

// A warp has 16 of its block's rows, and twice as many in the forward pass if registers allow it. Rows of
// tiles are padded by 8 numbers, so that eight of them are in different banks.
enum { WARPS = 4, THREADS = 32 * WARPS, ROWS = 16 * WARPS, LD = D + 8, WIDE = D <= 64 ? 2 : 1 };
enum { TILE = 64, SMALL = D <= 64 ? 64 : 32 };

// c += a b for 16 x 16 and 16 x 8. Lane l has c[2i + j] at row l/4 + 8i, column 2 (l%4) + j.
__device__ void mma(float *c, const u32 *a, const u32 *b) {
#if BF16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif
  asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads two b of `mma` from 16 rows and columns of a tile: of its transpose (its rows are columns of b), or
// of the tile itself.
__device__ void load_transposed(u32 *b, const num *tile, int row, int column) {
  int lane = threadIdx.x & 31;
  const num *at = tile + (row + (lane >> 4) * 8 + (lane & 7)) * LD + column + (lane >> 3 & 1) * 8;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
    : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"((u32)__cvta_generic_to_shared(at)) : "memory");
}

__device__ void load_straight(u32 *b, const num *tile, int row, int column) {
  int lane = threadIdx.x & 31;
  const num *at = tile + (row + (lane & 15)) * LD + column + (lane >> 4) * 8;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
    : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"((u32)__cvta_generic_to_shared(at)) : "memory");
}

// Begins to copy rows to a tile, with zeros beyond the end of the head.
template <int N> __device__ void copy_tile(num *tile, const Head &x, i64 first) {
  for (int i = threadIdx.x; i < N * (D / 8); i += THREADS) {
    int row = i / (D / 8), column = i % (D / 8) * 8;
    bool in = first + row < x.count && column < x.d;
    const num *from = in ? x.at + (first + row) * x.step + column : x.at;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"((u32)__cvta_generic_to_shared(tile + row * LD + column)), "l"(from), "r"(in ? 16 : 0) : "memory");
  }
}

// s = a tile' for N rows of the tile
template <int N> __device__ void scores(float (*s)[4], const u32 (*a)[4], const num *tile) {
  EACH(j, N / 8) EACH(i, 4) s[j][i] = 0;
  EACH(k, STEPS) EACH(j, N / 16) {
    u32 b[4];
    load_transposed(b, tile, 16 * j, 16 * k);
    mma(s[2 * j], a[k], b); mma(s[2 * j + 1], a[k], b + 2);
  }
}

// y += s tile
template <int N> __device__ void accumulate(float (*y)[4], const float (*s)[4], const num *tile) {
  EACH(k, N / 16) {
    u32 a[4], b[4];
    pack_fragment(a, s + 2 * k);
    EACH(j, STEPS) {
      load_straight(b, tile, 16 * k, 16 * j);
      mma(y[2 * j], a, b); mma(y[2 * j + 1], a, b + 2);
    }
  }
}

// lse: [b, h, n], unless it is null
extern "C" __global__ void __launch_bounds__(THREADS)
attention_forward(const num *q, const num *k, const num *v, num *o, float *lse, i64 n, i64 m, i64 d, i64 heads,
       STRIDES(q), STRIDES(k), STRIDES(v), STRIDES(o), float scale) {
  __shared__ __align__(16) num ks[TILE * LD], vs[TILE * LD];
  Head Q = head(q, {qb, qh, qn}, heads, n, d), O = head(o, {ob, oh, on}, heads, n, d);
  Head K = head(k, {kb, kh, kn}, heads, m, d), V = head(v, {vb, vh, vn}, heads, m, d);
  i64 first = (blockIdx.x * WARPS + threadIdx.x / 32) * (i64)(16 * WIDE);
  int lane = threadIdx.x & 31, tiles = (int)((m + TILE - 1) / TILE);
  float c = scale * 1.44269504f;

  u32 a[WIDE][STEPS][4];
  float y[WIDE][2 * STEPS][4], row_max[WIDE][2], row_sum[WIDE][2];
  EACH(w, WIDE) {
    load_fragments(a[w], Q, first + 16 * w);
    EACH(j, 2 * STEPS) EACH(i, 4) y[w][j][i] = 0;
    EACH(i, 2) { row_max[w][i] = -INF; row_sum[w][i] = 0; }
  }
  copy_tile<TILE>(ks, K, 0); commit_copies();
  for (int t = 0; t < tiles; t++) {
    copy_tile<TILE>(vs, V, t * TILE); commit_copies();
    await_copies<1>();
    float s[WIDE][TILE / 8][4];
    EACH(w, WIDE) EACH(j, TILE / 8) EACH(i, 4) s[w][j][i] = 0;
    EACH(k, STEPS) EACH(j, TILE / 16) {
      u32 b[4];
      load_transposed(b, ks, 16 * j, 16 * k);
      EACH(w, WIDE) { mma(s[w][2 * j], a[w][k], b); mma(s[w][2 * j + 1], a[w][k], b + 2); }
    }
    __syncthreads();
    // An empty group too, so that the wait below is for the values.
    if (t + 1 < tiles) copy_tile<TILE>(ks, K, (t + 1) * TILE);
    commit_copies();
    if ((t + 1) * (i64)TILE > m) {
      EACH(w, WIDE) EACH(j, TILE / 8) EACH(i, 4)
        if (t * (i64)TILE + j * 8 + lane % 4 * 2 + i % 2 >= m) s[w][j][i] = -INF;
    }
    EACH(w, WIDE) EACH(r, 2) {
      float new_max = row_max[w][r];
      EACH(j, TILE / 8) EACH(i, 2) new_max = fmaxf(new_max, s[w][j][2 * r + i]);
      new_max = quad_max(new_max);
      float shrink = exp2_approx((row_max[w][r] - new_max) * c), tile_sum = 0;
      row_max[w][r] = new_max;
      EACH(j, TILE / 8) EACH(i, 2) {
        float p = exp2_approx(s[w][j][2 * r + i] * c - new_max * c);
        s[w][j][2 * r + i] = p; tile_sum += p;
      }
      row_sum[w][r] = row_sum[w][r] * shrink + tile_sum;
      EACH(j, 2 * STEPS) EACH(i, 2) y[w][j][2 * r + i] *= shrink;
    }
    await_copies<1>();
    EACH(k, TILE / 16) {
      u32 p[WIDE][4], b[4];
      EACH(w, WIDE) pack_fragment(p[w], s[w] + 2 * k);
      EACH(j, STEPS) {
        load_straight(b, vs, 16 * k, 16 * j);
        EACH(w, WIDE) { mma(y[w][2 * j], p[w], b); mma(y[w][2 * j + 1], p[w], b + 2); }
      }
    }
    __syncthreads();
  }
  EACH(w, WIDE) {
    EACH(r, 2) row_sum[w][r] = quad_sum(row_sum[w][r]);
    store_rows(O, first + 16 * w, y[w], 1 / row_sum[w][0], 1 / row_sum[w][1]);
    EACH(r, 2) {
      i64 row = first + 16 * w + lane / 4 + 8 * r;
      if (lse && lane % 4 == 0 && row < n) lse[blockIdx.y * n + row] = row_max[w][r] * c + __log2f(row_sum[w][r]);
    }
  }
}

// Writes delta [b, h, n] for the other kernel, and dq.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_gradient_queries(const num *q, const num *k, const num *v, const num *g, const num *o, const float *lse, float *delta, num *dq,
                  i64 n, i64 m, i64 d, i64 heads, STRIDES(q), STRIDES(k), STRIDES(v), STRIDES(g), STRIDES(o), STRIDES(dq), float scale) {
  __shared__ __align__(16) num ks[2][SMALL * LD], vs[2][SMALL * LD];
  Head Q = head(q, {qb, qh, qn}, heads, n, d), G = head(g, {gb, gh, gn}, heads, n, d), O = head(o, {ob, oh, on}, heads, n, d);
  Head K = head(k, {kb, kh, kn}, heads, m, d), V = head(v, {vb, vh, vn}, heads, m, d), DQ = head(dq, {dqb, dqh, dqn}, heads, n, d);
  i64 first = (blockIdx.x * WARPS + threadIdx.x / 32) * (i64)16;
  int lane = threadIdx.x & 31, tiles = (int)((m + SMALL - 1) / SMALL);
  float c = scale * 1.44269504f;

  copy_tile<SMALL>(ks[0], K, 0); copy_tile<SMALL>(vs[0], V, 0); commit_copies();
  u32 a[STEPS][4], e[STEPS][4];
  load_fragments(a, Q, first); load_fragments(e, G, first);
  float y[2 * STEPS][4], l[2], row_delta[2] = {0, 0};
  EACH(j, 2 * STEPS) EACH(i, 4) y[j][i] = 0;
  EACH(k, STEPS) EACH(i, 4) {
    u32 x = O.pair(first + lane / 4 + i % 2 * 8, k * 16 + lane % 4 * 2 + i / 2 * 8);
    row_delta[i % 2] += low(x) * low(e[k][i]) + high(x) * high(e[k][i]);
  }
  EACH(r, 2) {
    i64 row = first + lane / 4 + 8 * r;
    l[r] = row < n ? lse[blockIdx.y * n + row] : INF;
    row_delta[r] = quad_sum(row_delta[r]);
    if (lane % 4 == 0 && row < n) delta[blockIdx.y * n + row] = row_delta[r];
  }
  for (int t = 0; t < tiles; t++) {
    const num *kt = ks[t & 1], *vt = vs[t & 1];
    if (t + 1 < tiles) {
      copy_tile<SMALL>(ks[t + 1 & 1], K, (t + 1) * (i64)SMALL); copy_tile<SMALL>(vs[t + 1 & 1], V, (t + 1) * (i64)SMALL);
    }
    commit_copies();
    await_copies<1>();
    float s[SMALL / 8][4], ds[SMALL / 8][4];
    scores<SMALL>(s, a, kt);
    scores<SMALL>(ds, e, vt);
    bool whole = (t + 1) * (i64)SMALL <= m;
    EACH(j, SMALL / 8) EACH(i, 4) {
      bool in = whole || t * (i64)SMALL + j * 8 + lane % 4 * 2 + i % 2 < m;
      ds[j][i] = in ? exp2_approx(s[j][i] * c - l[i / 2]) * (ds[j][i] - row_delta[i / 2]) : 0;
    }
    accumulate<SMALL>(y, ds, kt);
    __syncthreads();
  }
  store_rows(DQ, first, y, scale, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
attention_gradient_keys(const num *q, const num *k, const num *v, const num *g, const float *lse, const float *delta, num *dk, num *dv, float *parts,
               i64 blocks, i64 chunk, i64 n, i64 m, i64 d, i64 heads, STRIDES(q), STRIDES(k), STRIDES(v), STRIDES(g), STRIDES(dk), STRIDES(dv), float scale) {
  __shared__ __align__(16) num qs[2][SMALL * LD], gs[2][SMALL * LD];
  __shared__ float ls[2][SMALL], row_deltas[2][SMALL];
  Head Q = head(q, {qb, qh, qn}, heads, n, d), G = head(g, {gb, gh, gn}, heads, n, d);
  Head K = head(k, {kb, kh, kn}, heads, m, d), V = head(v, {vb, vh, vn}, heads, m, d);
  KeyBlock block(blocks, chunk, n);
  i64 first = (block.keys * WARPS + threadIdx.x / 32) * 16, end = block.begin + block.count;
  int lane = threadIdx.x & 31, tiles = (int)((block.count + SMALL - 1) / SMALL);
  float c = scale * 1.44269504f;
  lse += blockIdx.y * n; delta += blockIdx.y * n;

  auto next = [&](int t) {
    i64 row = block.begin + t * (i64)SMALL;
    copy_tile<SMALL>(qs[t & 1], Q, row); copy_tile<SMALL>(gs[t & 1], G, row);
    for (int i = threadIdx.x; i < SMALL; i += THREADS) {
      // A query beyond the end has no weight on any key.
      ls[t & 1][i] = row + i < end ? lse[row + i] : INF;
      row_deltas[t & 1][i] = row + i < end ? delta[row + i] : 0;
    }
  };
  next(0); commit_copies();
  u32 a[STEPS][4], e[STEPS][4];
  load_fragments(a, K, first); load_fragments(e, V, first);
  float yk[2 * STEPS][4], yv[2 * STEPS][4];
  EACH(j, 2 * STEPS) EACH(i, 4) yk[j][i] = yv[j][i] = 0;
  for (int t = 0; t < tiles; t++) {
    const num *qt = qs[t & 1], *gt = gs[t & 1];
    const float *l = ls[t & 1], *row_delta = row_deltas[t & 1];
    if (t + 1 < tiles) next(t + 1);
    commit_copies();
    await_copies<1>();
    float p[SMALL / 8][4], ds[SMALL / 8][4];
    scores<SMALL>(p, a, qt);
    EACH(j, SMALL / 8) EACH(i, 4) p[j][i] = exp2_approx(p[j][i] * c - l[j * 8 + lane % 4 * 2 + i % 2]);
    accumulate<SMALL>(yv, p, gt);
    scores<SMALL>(ds, e, gt);
    EACH(j, SMALL / 8) EACH(i, 4) ds[j][i] = p[j][i] * (ds[j][i] - row_delta[j * 8 + lane % 4 * 2 + i % 2]);
    accumulate<SMALL>(yk, ds, qt);
    __syncthreads();
  }
  if (parts) {
    store_sums(block.sums(parts, 0, m, d), first, m, d, yk, scale);
    store_sums(block.sums(parts, 1, m, d), first, m, d, yv, 1);
    return;
  }
  store_rows(head(dk, {dkb, dkh, dkn}, heads, m, d), first, yk, scale, scale);
  store_rows(head(dv, {dvb, dvh, dvn}, heads, m, d), first, yv, 1, 1);
}
