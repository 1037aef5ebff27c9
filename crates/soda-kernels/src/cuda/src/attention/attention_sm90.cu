// Attention as in attention.cu, on tensor cores that read their second factor from shared memory (wgmma):
// compute capability 9.0a.
//
// A warpgroup of four warps multiplies 64 rows at once. Each warp has 16 of them, in its registers as
// mma.sync has them.
//
// A tile is 64 rows, in one half or two of 128 bytes a row, each aligned to 1024 bytes. The hardware wants
// the pieces of 16 bytes permuted within each eight rows (128-byte swizzle). A tile is a second factor either
// way: with its rows as columns, or as they are.
//
// The copies of the next tile begin when the products with a tile have been issued, so that the threads issue
// them beside the products.
//
// Comes after attention.cuh. D is 48, 64 or 128. Tiles are in dynamic memory.

typedef unsigned long long u64;
// A block is one warpgroup. Blocks of a multiprocessor compute independently, so that one has products while
// another has a softmax.
enum { WARPGROUP = 128, ROWS = 64, TILE = 64, HALVES = (D + 63) / 64, HALF = TILE * 64, SIZE = HALVES * HALF, STAGES = 2 };
// The blocks of a multiprocessor, as many as registers allow.
enum { FORWARD_BLOCKS = D > 64 ? 2 : 4, GRADIENT_BLOCKS = D > 64 ? 2 : 3 };

extern __shared__ num memory[];

__device__ u32 shared(const void *x) { return (u32)__cvta_generic_to_shared(x); }
__device__ void copy_async(u32 to, const void *from, bool in) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(in ? 16 : 0) : "memory");
}
__device__ void copy_float_async(u32 to, const float *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from) : "memory");
}

// Copies of rows of a head to tiles: eight threads copy a row, the next eight the row below.
struct Rows {
  enum { BELOW = WARPGROUP / 8 };
  const num *start, *from;
  i64 step;
  u32 offset;
  int row;
  bool used, in_head;
  __device__ Rows(const Head &x, i64 first) : start(x.at), step(x.step), row(threadIdx.x / 8) {
    int piece = threadIdx.x & 7;
    from = x.at + (first + row) * step + piece * 8;
    offset = row * 128 + (piece ^ (row & 7)) * 16;
    used = D >= 64 || piece < D / 8; in_head = (HALVES - 1) * 64 + piece * 8 < x.d;
  }
  // Begins to copy the next tile, of which `left` rows exist, with zeros beyond.
  __device__ void fetch(num *tile, int left) {
    u32 to = shared(tile) + offset;
    if (used) EACH(h, HALVES) EACH(k, TILE / BELOW) {
      bool in = (in_head || h < HALVES - 1) && row + k * BELOW < left;
      copy_async(to + (h * HALF + k * BELOW * 64) * 2, in ? from + h * 64 + k * BELOW * step : start, in);
    }
    from += TILE * step;
  }
};

// Waits until all copies have arrived, for the whole block and its tensor cores. Tiles that were read before
// may be overwritten then.
__device__ void await_tiles() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

// The first tile, at the first multiple of 1024 bytes.
__device__ num *tiles() { return memory + (-shared(memory) & 1023) / sizeof(num); }

// The matrix descriptor of a tile: eight of its rows are 1024 bytes, and its halves are HALF numbers apart.
__device__ u64 descriptor(const num *tile) {
  return (u64)(shared(tile) >> 4) | (u64)(HALF * 2 >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
// The step of a descriptor by 16 rows, and that to the k-th 16 columns.
enum { DOWN = 2048 >> 4 };
__device__ u64 columns(int k) { return k / 4 * (HALF * 2 >> 4) + k % 4 * (32 >> 4); }

#if BF16
#define TYPES "f32.bf16.bf16"
#else
#define TYPES "f32.f16.f16"
#endif
#define C4(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define C24 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23}"
#define C64 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define C32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

#define C8 C4(0), C4(1), C4(2), C4(3), C4(4), C4(5), C4(6), C4(7)
#define C16 C8, C4(8), C4(9), C4(10), C4(11), C4(12), C4(13), C4(14), C4(15)

// c = a tile', or c += a tile' if `more`: 64 rows of a in registers, and 16 columns of the tile.
__device__ void score(float (*c)[4], const u32 *a, u64 tile, int more) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16." TYPES " " C32 ", {%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
    : C8
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile), "r"(more));
}

// As `score`, with the rows of another tile for a.
__device__ void score_tiles(float (*c)[4], u64 a, u64 tile, int more) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16." TYPES " " C32 ", %32, %33, p, 1, 1, 0, 0; }"
    : C8 : "l"(a), "l"(tile), "r"(more));
}

// c += a tile: 16 columns of a, 16 rows of the tile.
__device__ void accumulate(float (*c)[4], const u32 *a, u64 tile) {
#if D == 128
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16." TYPES " " C64 ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
    : C16
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
#elif D == 64
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." TYPES " " C32 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
    : C8
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
#else
  asm volatile("wgmma.mma_async.sync.aligned.m64n48k16." TYPES " " C24 ", {%24,%25,%26,%27}, %28, 1, 1, 1, 1;"
    : C4(0), C4(1), C4(2), C4(3), C4(4), C4(5)
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
#endif
}

// Fences registers before products read them, commits a group of products, and waits until all but the newest
// `N` groups are done.
__device__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N, int J> __device__ void await_products(float (*c)[4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
  // Keeps reads of the sums behind the wait.
  EACH(j, J) EACH(i, 4) asm volatile("" : "+f"(c[j][i]) :: "memory");
}

// Keeps a branch a branch: without it the compiler computes both sides and selects.
__device__ void keep_branch() { asm volatile("" ::: "memory"); }

// The running maximum and sum of the rows of a lane, in the softmax of scores that come tile by tile.
struct Softmax {
  float c, row_max[2] = {-INF, -INF}, row_sum[2] = {0, 0}, shrink[2];
  bool raised;

  // Turns the scores of a tile into weights, of which `left` exist. Sets the factors of earlier sums.
  __device__ void weights(float (*s)[4], int left) {
    int lane = threadIdx.x & 31;
    if (left < TILE) {
      keep_branch();
      EACH(j, TILE / 8) EACH(i, 4) if (j * 8 + lane % 4 * 2 + i % 2 >= left) s[j][i] = -INF;
    }
    float new_max[2];
    EACH(r, 2) {
      new_max[r] = row_max[r];
      EACH(j, TILE / 8) EACH(i, 2) new_max[r] = fmaxf(new_max[r], s[j][2 * r + i]);
      new_max[r] = quad_max(new_max[r]);
    }
    // Few tiles raise the maximum of a row.
    raised = __any_sync(~0u, new_max[0] > row_max[0] || new_max[1] > row_max[1]);
    if (raised) {
      keep_branch();
      EACH(r, 2) {
        shrink[r] = exp2_approx((row_max[r] - new_max[r]) * c);
        row_max[r] = new_max[r];
        row_sum[r] *= shrink[r];
      }
    }
    EACH(r, 2) {
      float shift = row_max[r] * c;
      EACH(j, TILE / 8) EACH(i, 2) {
        float p = exp2_approx(s[j][2 * r + i] * c - shift);
        s[j][2 * r + i] = p; row_sum[r] += p;
      }
    }
  }

  // Applies the factors to sums.
  __device__ void rescale(float (*y)[4]) const {
    if (raised) {
      keep_branch();
      EACH(r, 2) EACH(j, 2 * STEPS) EACH(i, 2) y[j][2 * r + i] *= shrink[r];
    }
  }
};

// lse: [b, h, n], unless it is null
//
// The scores of a tile are multiplied before the values of the tile before it, so that the softmax runs
// beside the product with these values.
extern "C" __global__ void __launch_bounds__(WARPGROUP, FORWARD_BLOCKS)
attention_forward(const num *q, const num *k, const num *v, num *o, float *lse, i64 n, i64 m, i64 d, i64 heads,
       STRIDES(q), STRIDES(k), STRIDES(v), STRIDES(o), float scale) {
  enum { VALUE_STAGES = STAGES + 1 };
  num *ks = tiles(), *vs = ks + STAGES * SIZE;
  Head Q = head(q, {qb, qh, qn}, heads, n, d), O = head(o, {ob, oh, on}, heads, n, d);
  Rows K(head(k, {kb, kh, kn}, heads, m, d), 0), V(head(v, {vb, vh, vn}, heads, m, d), 0);
  i64 first = blockIdx.x * (i64)ROWS + threadIdx.x / 32 * 16;
  int lane = threadIdx.x & 31, left = (int)m, stage = 0, value_stage = 0;
  Softmax softmax{scale * 1.44269504f};

  // The values are a stage behind the keys: those of a tile are read after the keys of the next one.
  K.fetch(ks, left); V.fetch(vs, left); commit_copies();
  u32 a[STEPS][4], p[TILE / 16][4];
  load_fragments(a, Q, first);
  float y[2 * STEPS][4], s[TILE / 8][4];
  EACH(j, 2 * STEPS) EACH(i, 4) y[j][i] = 0;

  await_tiles();
  u64 kt = descriptor(ks), vt = descriptor(vs);
  fence_products();
  EACH(k, STEPS) score(s, a[k], kt + columns(k), k > 0);
  commit_products();
  auto next = [&] {
    stage = (stage + 1) % STAGES; value_stage = (value_stage + 1) % VALUE_STAGES;
    if (left > TILE) { K.fetch(ks + stage * SIZE, left - TILE); V.fetch(vs + value_stage * SIZE, left - TILE); }
    commit_copies();
  };
  next();
  await_products<0, TILE / 8>(s);
  softmax.weights(s, left);
  EACH(k, TILE / 16) pack_fragment(p[k], s + 2 * k);
  #pragma unroll 1
  for (left -= TILE; left > 0; left -= TILE) {
    await_tiles();
    kt = descriptor(ks + stage * SIZE);
    u64 next_vt = descriptor(vs + value_stage * SIZE);
    fence_products();
    EACH(k, STEPS) score(s, a[k], kt + columns(k), k > 0);
    commit_products();
    EACH(k, TILE / 16) accumulate(y, p[k], vt + DOWN * k);
    commit_products();
    next();
    vt = next_vt;
    await_products<1, TILE / 8>(s);
    softmax.weights(s, left);
    await_products<0, 2 * STEPS>(y);
    softmax.rescale(y);
    EACH(k, TILE / 16) pack_fragment(p[k], s + 2 * k);
  }
  fence_products();
  EACH(k, TILE / 16) accumulate(y, p[k], vt + DOWN * k);
  commit_products();
  await_products<0, 2 * STEPS>(y);
  float *row_max = softmax.row_max, *row_sum = softmax.row_sum;
  EACH(r, 2) row_sum[r] = quad_sum(row_sum[r]);
  store_rows(O, first, y, 1 / row_sum[0], 1 / row_sum[1]);
  EACH(r, 2) {
    i64 row = first + lane / 4 + 8 * r;
    if (lse && lane % 4 == 0 && row < n) lse[blockIdx.y * n + row] = row_max[r] * softmax.c + __log2f(row_sum[r]);
  }
}

// Writes delta [b, h, n] for the other kernel, and dq.
extern "C" __global__ void __launch_bounds__(WARPGROUP, GRADIENT_BLOCKS)
attention_gradient_queries(const num *q, const num *k, const num *v, const num *g, const num *o, const float *lse, float *delta, num *dq,
                  i64 n, i64 m, i64 d, i64 heads, STRIDES(q), STRIDES(k), STRIDES(v), STRIDES(g), STRIDES(o), STRIDES(dq), float scale) {
  num *ks = tiles(), *vs = ks + STAGES * SIZE;
  Head Q = head(q, {qb, qh, qn}, heads, n, d), G = head(g, {gb, gh, gn}, heads, n, d), O = head(o, {ob, oh, on}, heads, n, d);
  Rows K(head(k, {kb, kh, kn}, heads, m, d), 0), V(head(v, {vb, vh, vn}, heads, m, d), 0);
  i64 first = blockIdx.x * (i64)ROWS + threadIdx.x / 32 * 16;
  int lane = threadIdx.x & 31, left = (int)m, stage = 0;
  float c = scale * 1.44269504f;

  K.fetch(ks, left); V.fetch(vs, left); commit_copies();
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
  #pragma unroll 1
  for (; left > 0; left -= TILE) {
    await_tiles();
    u64 kt = descriptor(ks + stage * SIZE), vt = descriptor(vs + stage * SIZE);
    float s[TILE / 8][4], ds[TILE / 8][4];
    fence_products();
    EACH(k, STEPS) score(s, a[k], kt + columns(k), k > 0);
    commit_products();
    EACH(k, STEPS) score(ds, e[k], vt + columns(k), k > 0);
    commit_products();
    stage = (stage + 1) % STAGES;
    if (left > TILE) { K.fetch(ks + stage * SIZE, left - TILE); V.fetch(vs + stage * SIZE, left - TILE); }
    commit_copies();
    await_products<1, TILE / 8>(s);
    EACH(j, TILE / 8) EACH(i, 4) s[j][i] = exp2_approx(s[j][i] * c - l[i / 2]);
    if (left < TILE) {
      keep_branch();
      EACH(j, TILE / 8) EACH(i, 4) if (j * 8 + lane % 4 * 2 + i % 2 >= left) s[j][i] = 0;
    }
    await_products<0, TILE / 8>(ds);
    EACH(j, TILE / 8) EACH(i, 4) s[j][i] *= ds[j][i] - row_delta[i / 2];
    u32 p[TILE / 16][4];
    EACH(k, TILE / 16) pack_fragment(p[k], s + 2 * k);
    fence_products();
    EACH(k, TILE / 16) accumulate(y, p[k], kt + DOWN * k);
    commit_products();
    await_products<0, 2 * STEPS>(y);
  }
  store_rows(head(dq, {dqb, dqh, dqn}, heads, n, d), first, y, scale, scale);
}

extern "C" __global__ void __launch_bounds__(WARPGROUP, GRADIENT_BLOCKS)
attention_gradient_keys(const num *q, const num *k, const num *v, const num *g, const float *lse, const float *delta, num *dk, num *dv, float *parts,
               i64 blocks, i64 chunk, i64 n, i64 m, i64 d, i64 heads, STRIDES(q), STRIDES(k), STRIDES(v), STRIDES(g), STRIDES(dk), STRIDES(dv), float scale) {
  KeyBlock block(blocks, chunk, n);
  // The block's keys and values, the stages, and the floats of each query.
  num *ks = tiles(), *vs = ks + SIZE, *qs = vs + SIZE, *gs = qs + STAGES * SIZE;
  float2 *ls = (float2 *)(gs + STAGES * SIZE), *row_deltas = ls + STAGES * TILE / 2;
  Rows Q(head(q, {qb, qh, qn}, heads, n, d), block.begin), G(head(g, {gb, gh, gn}, heads, n, d), block.begin);
  i64 first = block.keys * ROWS;
  Rows K(head(k, {kb, kh, kn}, heads, m, d), first), V(head(v, {vb, vh, vn}, heads, m, d), first);
  int lane = threadIdx.x & 31, left = (int)block.count, stage = 0;
  float c = scale * 1.44269504f;
  lse += blockIdx.y * n + block.begin + threadIdx.x; delta += blockIdx.y * n + block.begin + threadIdx.x;

  auto next = [&](int left) {
    Q.fetch(qs + stage * SIZE, left); G.fetch(gs + stage * SIZE, left);
    if (threadIdx.x < TILE) {
      float *l = (float *)ls + stage * TILE + threadIdx.x, *row_delta = (float *)row_deltas + stage * TILE + threadIdx.x;
      if ((int)threadIdx.x < left) { copy_float_async(shared(l), lse); copy_float_async(shared(row_delta), delta); }
      // A query beyond the end has no weight on any key.
      else { *l = INF; *row_delta = 0; }
      lse += TILE; delta += TILE;
    }
  };
  K.fetch(ks, (int)(m - first)); V.fetch(vs, (int)(m - first)); next(left); commit_copies();
  u64 kt = descriptor(ks), vt = descriptor(vs);
  float yk[2 * STEPS][4], yv[2 * STEPS][4];
  EACH(j, 2 * STEPS) EACH(i, 4) yk[j][i] = yv[j][i] = 0;
  #pragma unroll 1
  for (; left > 0; left -= TILE) {
    await_tiles();
    u64 qt = descriptor(qs + stage * SIZE), gt = descriptor(gs + stage * SIZE);
    const float2 *l = ls + stage * TILE / 2 + lane % 4, *row_delta = row_deltas + stage * TILE / 2 + lane % 4;
    float s[TILE / 8][4], ds[TILE / 8][4];
    fence_products();
    EACH(k, STEPS) score_tiles(s, kt + columns(k), qt + columns(k), k > 0);
    commit_products();
    EACH(k, STEPS) score_tiles(ds, vt + columns(k), gt + columns(k), k > 0);
    commit_products();
    stage = (stage + 1) % STAGES;
    if (left > TILE) next(left - TILE);
    commit_copies();
    await_products<1, TILE / 8>(s);
    EACH(j, TILE / 8) {
      float2 both = l[j * 4];
      EACH(i, 4) s[j][i] = exp2_approx(s[j][i] * c - (i % 2 ? both.y : both.x));
    }
    u32 p[TILE / 16][4];
    EACH(k, TILE / 16) pack_fragment(p[k], s + 2 * k);
    fence_products();
    EACH(k, TILE / 16) accumulate(yv, p[k], gt + DOWN * k);
    commit_products();
    await_products<1, TILE / 8>(ds);
    EACH(j, TILE / 8) {
      float2 both = row_delta[j * 4];
      EACH(i, 4) s[j][i] *= ds[j][i] - (i % 2 ? both.y : both.x);
    }
    u32 e[TILE / 16][4];
    EACH(k, TILE / 16) pack_fragment(e[k], s + 2 * k);
    fence_products();
    EACH(k, TILE / 16) accumulate(yk, e[k], qt + DOWN * k);
    commit_products();
    await_products<0, 2 * STEPS>(yk);
    await_products<0, 2 * STEPS>(yv);
  }
  first += threadIdx.x / 32 * 16;
  if (parts) {
    store_sums(block.sums(parts, 0, m, d), first, m, d, yk, scale);
    store_sums(block.sums(parts, 1, m, d), first, m, d, yv, 1);
    return;
  }
  store_rows(head(dk, {dkb, dkh, dkn}, heads, m, d), first, yk, scale, scale);
  store_rows(head(dv, {dvb, dvh, dvn}, heads, m, d), first, yv, 1, 1);
}
