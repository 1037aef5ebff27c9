// Attention as in attention.cu, on tensor cores that read their second factor from shared memory (wgmma): capability 9.0a.
//
// A warpgroup of four warps multiplies 64 rows at once, of which each warp has 16, lying in its registers as those of mma.sync do.
// Tiles are 64 rows of 128 bytes. Their pieces of 16 bytes are exchanged within each eight rows, as the hardware wants it
// (128-byte swizzle), and begin at multiples of 1024. A tile is a second factor either way: its rows as columns, or as they are.
//
// Comes after heads.cu. D is 48 or 64.

typedef unsigned long long u64;
enum { GROUP = 128, ROWS = 64, TILE = 64, SIZE = TILE * 64, STAGES = 3 };

__device__ u32 shared(const void *x) { return (u32)__cvta_generic_to_shared(x); }
__device__ void copy(u32 to, const void *from, bool in) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(in ? 16 : 0) : "memory");
}
__device__ void copy_number(u32 to, const float *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from) : "memory");
}

// Rows of a head on their way to tiles, by N threads: eight of them have a row, the next eight the one below.
template <int N> struct Rows {
  enum { BELOW = N / 8 };
  const num *start, *from;
  i64 step;
  u32 offset;
  int row;
  bool used, real;
  __device__ Rows(const Head &x, i64 first) : start(x.at), step(x.step), row(threadIdx.x / 8) {
    int piece = threadIdx.x & 7;
    from = x.at + (first + row) * step + piece * 8;
    offset = row * 128 + (piece ^ (row & 7)) * 16;
    used = piece < D / 8; real = piece * 8 < x.d;
  }
  // Begins to copy the next tile, of which `left` rows are there; zeros beyond.
  __device__ void fetch(num *tile, int left) {
    u32 to = shared(tile) + offset;
    if (used) EACH(k, TILE / BELOW) {
      bool in = real && row + k * BELOW < left;
      copy(to + k * BELOW * 128, in ? from + k * BELOW * step : start, in);
    }
    from += TILE * step;
  }
};

// Until all but the newest `N` groups of copies are there, for the whole block and its tensor cores. What was read before is
// free then.
template <int N> __device__ void tiles_arrived() {
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

__device__ int after(int stage) { return stage + 1 < STAGES ? stage + 1 : 0; }

// A tile as the hardware is told of it: eight of its rows are 1024 bytes.
__device__ u64 told(const num *tile) { return (u64)(shared(tile) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
// 16 columns further, and 16 rows.
enum { RIGHT = 32 >> 4, DOWN = 2048 >> 4 };

#if BF16
#define TYPES "f32.bf16.bf16"
#else
#define TYPES "f32.f16.f16"
#endif
#define C4(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define C24 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23}"
#define C32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

// c = a tile', or c += for `more`: 64 rows of a in registers, and 16 columns of the tile.
__device__ void score(float (*c)[4], const u32 *a, u64 tile, int more) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16." TYPES " " C32 ", {%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
    : C4(0), C4(1), C4(2), C4(3), C4(4), C4(5), C4(6), C4(7)
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile), "r"(more));
}

// The same with the rows of another tile for a.
__device__ void score_tiles(float (*c)[4], u64 a, u64 tile, int more) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16." TYPES " " C32 ", %32, %33, p, 1, 1, 0, 0; }"
    : C4(0), C4(1), C4(2), C4(3), C4(4), C4(5), C4(6), C4(7) : "l"(a), "l"(tile), "r"(more));
}

// c += a tile: 16 columns of a, 16 rows of the tile.
__device__ void sum(float (*c)[4], const u32 *a, u64 tile) {
#if D == 64
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." TYPES " " C32 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
    : C4(0), C4(1), C4(2), C4(3), C4(4), C4(5), C4(6), C4(7)
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
#else
  asm volatile("wgmma.mma_async.sync.aligned.m64n48k16." TYPES " " C24 ", {%24,%25,%26,%27}, %28, 1, 1, 1, 1;"
    : C4(0), C4(1), C4(2), C4(3), C4(4), C4(5)
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
#endif
}

// Before products of what was written to registers, after those that belong together, and until all but the newest `N` of
// them are done.
__device__ void products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void asked() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N, int J> __device__ void done(float (*c)[4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
  // What reads the sums comes after.
  EACH(j, J) EACH(i, 4) asm volatile("" : "+f"(c[j][i]) :: "memory");
}

// What is left as a branch, and not done each time and thrown away.
__device__ void seldom() { asm volatile("" ::: "memory"); }

// lse: [b, h, n], unless it is null
extern "C" __global__ void __launch_bounds__(2 * GROUP, 2)
attend(const num *q, const num *k, const num *v, num *o, float *lse, i64 n, i64 m, i64 d, i64 heads, i64 qb, i64 qh, i64 qn,
       i64 kb, i64 kh, i64 kn, i64 vb, i64 vh, i64 vn, float scale) {
  __shared__ __align__(1024) num ks[STAGES][SIZE], vs[STAGES][SIZE];
  Head Q = head(q, {qb, qh, qn}, heads, n, d), O = plain(o, heads, n, d);
  Rows<2 * GROUP> K(head(k, {kb, kh, kn}, heads, m, d), 0), V(head(v, {vb, vh, vn}, heads, m, d), 0);
  i64 first = blockIdx.x * (i64)(2 * ROWS) + threadIdx.x / 32 * 16;
  int lane = threadIdx.x & 31, left = (int)m, stage = 0;
  float c = scale * 1.44269504f;

  K.fetch(ks[0], left); V.fetch(vs[0], left); commit();
  u32 a[STEPS][4];
  fragments(a, Q, first);
  float y[2 * STEPS][4], most[2] = {-INF, -INF}, total[2] = {0, 0};
  EACH(j, 2 * STEPS) EACH(i, 4) y[j][i] = 0;
  #pragma unroll 1
  for (; left > 0; left -= TILE) {
    u64 kt = told(ks[stage]), vt = told(vs[stage]);
    stage = after(stage);
    if (left > TILE) { K.fetch(ks[stage], left - TILE); V.fetch(vs[stage], left - TILE); }
    commit();
    tiles_arrived<1>();
    float s[TILE / 8][4];
    products();
    EACH(k, STEPS) score(s, a[k], kt + RIGHT * k, k > 0);
    asked();
    done<0, TILE / 8>(s);
    if (left < TILE) {
      seldom();
      EACH(j, TILE / 8) EACH(i, 4) if (j * 8 + lane % 4 * 2 + i % 2 >= left) s[j][i] = -INF;
    }
    float top[2];
    EACH(r, 2) {
      top[r] = most[r];
      EACH(j, TILE / 8) EACH(i, 2) top[r] = fmaxf(top[r], s[j][2 * r + i]);
      top[r] = quad_max(top[r]);
    }
    // Most tiles have nothing larger.
    if (__any_sync(~0u, top[0] > most[0] || top[1] > most[1])) {
      seldom();
      EACH(r, 2) {
        float shrink = power((most[r] - top[r]) * c);
        most[r] = top[r];
        total[r] *= shrink;
        EACH(j, 2 * STEPS) EACH(i, 2) y[j][2 * r + i] *= shrink;
      }
    }
    EACH(r, 2) {
      float less = most[r] * c;
      EACH(j, TILE / 8) EACH(i, 2) {
        float p = power(s[j][2 * r + i] * c - less);
        s[j][2 * r + i] = p; total[r] += p;
      }
    }
    u32 p[TILE / 16][4];
    EACH(k, TILE / 16) packed(p[k], s + 2 * k);
    products();
    EACH(k, TILE / 16) sum(y, p[k], vt + DOWN * k);
    asked();
    done<0, 2 * STEPS>(y);
  }
  EACH(r, 2) total[r] = quad_sum(total[r]);
  put(O, first, y, 1 / total[0], 1 / total[1]);
  EACH(r, 2) {
    i64 row = first + lane / 4 + 8 * r;
    if (lse && lane % 4 == 0 && row < n) lse[blockIdx.y * n + row] = most[r] * c + __log2f(total[r]);
  }
}

// delta: [b, h, n], for the other kernel
extern "C" __global__ void __launch_bounds__(GROUP, 3)
attend_by_queries(const num *q, const num *k, const num *v, const num *g, const num *o, const float *lse, float *delta, num *dq,
                  i64 n, i64 m, i64 d, i64 heads, i64 qb, i64 qh, i64 qn, i64 kb, i64 kh, i64 kn, i64 vb, i64 vh, i64 vn,
                  i64 gb, i64 gh, i64 gn, float scale) {
  __shared__ __align__(1024) num ks[STAGES][SIZE], vs[STAGES][SIZE];
  Head Q = head(q, {qb, qh, qn}, heads, n, d), G = head(g, {gb, gh, gn}, heads, n, d), O = plain(o, heads, n, d);
  Head DQ = plain(dq, heads, n, d);
  Rows<GROUP> K(head(k, {kb, kh, kn}, heads, m, d), 0), V(head(v, {vb, vh, vn}, heads, m, d), 0);
  i64 first = blockIdx.x * (i64)ROWS + threadIdx.x / 32 * 16;
  int lane = threadIdx.x & 31, left = (int)m, stage = 0;
  float c = scale * 1.44269504f;

  K.fetch(ks[0], left); V.fetch(vs[0], left); commit();
  u32 a[STEPS][4], e[STEPS][4];
  fragments(a, Q, first); fragments(e, G, first);
  float y[2 * STEPS][4], l[2], mean[2] = {0, 0};
  EACH(j, 2 * STEPS) EACH(i, 4) y[j][i] = 0;
  EACH(k, STEPS) EACH(i, 4) {
    u32 x = O.pair(first + lane / 4 + i % 2 * 8, k * 16 + lane % 4 * 2 + i / 2 * 8);
    mean[i % 2] += low(x) * low(e[k][i]) + high(x) * high(e[k][i]);
  }
  EACH(r, 2) {
    i64 row = first + lane / 4 + 8 * r;
    l[r] = row < n ? lse[blockIdx.y * n + row] : INF;
    mean[r] = quad_sum(mean[r]);
    if (lane % 4 == 0 && row < n) delta[blockIdx.y * n + row] = mean[r];
  }
  #pragma unroll 1
  for (; left > 0; left -= TILE) {
    u64 kt = told(ks[stage]), vt = told(vs[stage]);
    stage = after(stage);
    if (left > TILE) { K.fetch(ks[stage], left - TILE); V.fetch(vs[stage], left - TILE); }
    commit();
    tiles_arrived<1>();
    float s[TILE / 8][4], ds[TILE / 8][4];
    products();
    EACH(k, STEPS) score(s, a[k], kt + RIGHT * k, k > 0);
    asked();
    EACH(k, STEPS) score(ds, e[k], vt + RIGHT * k, k > 0);
    asked();
    done<1, TILE / 8>(s);
    EACH(j, TILE / 8) EACH(i, 4) s[j][i] = power(s[j][i] * c - l[i / 2]);
    if (left < TILE) {
      seldom();
      EACH(j, TILE / 8) EACH(i, 4) if (j * 8 + lane % 4 * 2 + i % 2 >= left) s[j][i] = 0;
    }
    done<0, TILE / 8>(ds);
    EACH(j, TILE / 8) EACH(i, 4) s[j][i] *= ds[j][i] - mean[i / 2];
    u32 p[TILE / 16][4];
    EACH(k, TILE / 16) packed(p[k], s + 2 * k);
    products();
    EACH(k, TILE / 16) sum(y, p[k], kt + DOWN * k);
    asked();
    done<0, 2 * STEPS>(y);
  }
  put(DQ, first, y, scale, scale);
}

extern __shared__ num memory[];

extern "C" __global__ void __launch_bounds__(GROUP, 3)
attend_by_keys(const num *q, const num *k, const num *v, const num *g, const float *lse, const float *delta, num *dk, num *dv,
               i64 n, i64 m, i64 d, i64 heads, i64 qb, i64 qh, i64 qn, i64 kb, i64 kh, i64 kn, i64 vb, i64 vh, i64 vn,
               i64 gb, i64 gh, i64 gn, float scale) {
  // Tiles and what belongs to queries, from the first multiple of 1024 on.
  num *ks = memory + (-shared(memory) & 1023) / sizeof(num), *vs = ks + SIZE, *qs = vs + SIZE, *gs = qs + STAGES * SIZE;
  float2 *ls = (float2 *)(gs + STAGES * SIZE), *means = ls + STAGES * TILE / 2;
  Rows<GROUP> Q(head(q, {qb, qh, qn}, heads, n, d), 0), G(head(g, {gb, gh, gn}, heads, n, d), 0);
  i64 first = blockIdx.x * (i64)ROWS;
  Rows<GROUP> K(head(k, {kb, kh, kn}, heads, m, d), first), V(head(v, {vb, vh, vn}, heads, m, d), first);
  int lane = threadIdx.x & 31, left = (int)n, stage = 0;
  float c = scale * 1.44269504f;
  lse += blockIdx.y * n + threadIdx.x; delta += blockIdx.y * n + threadIdx.x;

  auto next = [&](int left) {
    Q.fetch(qs + stage * SIZE, left); G.fetch(gs + stage * SIZE, left);
    if (threadIdx.x < TILE) {
      float *l = (float *)ls + stage * TILE + threadIdx.x, *mean = (float *)means + stage * TILE + threadIdx.x;
      if ((int)threadIdx.x < left) { copy_number(shared(l), lse); copy_number(shared(mean), delta); }
      // A query that is not there has no weight on any key.
      else { *l = INF; *mean = 0; }
      lse += TILE; delta += TILE;
    }
  };
  K.fetch(ks, (int)(m - first)); V.fetch(vs, (int)(m - first)); next(left); commit();
  u64 kt = told(ks), vt = told(vs);
  float yk[2 * STEPS][4], yv[2 * STEPS][4];
  EACH(j, 2 * STEPS) EACH(i, 4) yk[j][i] = yv[j][i] = 0;
  #pragma unroll 1
  for (; left > 0; left -= TILE) {
    u64 qt = told(qs + stage * SIZE), gt = told(gs + stage * SIZE);
    const float2 *l = ls + stage * TILE / 2 + lane % 4, *mean = means + stage * TILE / 2 + lane % 4;
    stage = after(stage);
    if (left > TILE) next(left - TILE);
    commit();
    tiles_arrived<1>();
    float s[TILE / 8][4], ds[TILE / 8][4];
    products();
    EACH(k, STEPS) score_tiles(s, kt + RIGHT * k, qt + RIGHT * k, k > 0);
    asked();
    EACH(k, STEPS) score_tiles(ds, vt + RIGHT * k, gt + RIGHT * k, k > 0);
    asked();
    done<1, TILE / 8>(s);
    EACH(j, TILE / 8) {
      float2 both = l[j * 4];
      EACH(i, 4) s[j][i] = power(s[j][i] * c - (i % 2 ? both.y : both.x));
    }
    u32 p[TILE / 16][4];
    EACH(k, TILE / 16) packed(p[k], s + 2 * k);
    products();
    EACH(k, TILE / 16) sum(yv, p[k], gt + DOWN * k);
    asked();
    done<1, TILE / 8>(ds);
    EACH(j, TILE / 8) {
      float2 both = mean[j * 4];
      EACH(i, 4) s[j][i] *= ds[j][i] - (i % 2 ? both.y : both.x);
    }
    u32 e[TILE / 16][4];
    EACH(k, TILE / 16) packed(e[k], s + 2 * k);
    products();
    EACH(k, TILE / 16) sum(yk, e[k], qt + DOWN * k);
    asked();
    done<0, 2 * STEPS>(yk);
    done<0, 2 * STEPS>(yv);
  }
  first += threadIdx.x / 32 * 16;
  put(plain(dk, heads, m, d), first, yk, scale, scale);
  put(plain(dv, heads, m, d), first, yv, 1, 1);
}
