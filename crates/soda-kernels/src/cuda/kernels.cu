// Reductions over rows and groups, and gates, with their gradients. Every kernel that computes exists for float (f32),
// bfloat16 (bf16) and half (f16), computes in float, and gives the same bits on every run: no atomics, one order of summation.
//
// Comes after numbers.cu. No header is needed, so that NVRTC alone compiles this in well under a second.

#define INF __int_as_float(0x7f800000)

struct Sum { __device__ static float join(float a, float b) { return a + b; } };
struct Max { __device__ static float join(float a, float b) { return fmaxf(a, b); } };

// Over so many threads, a warp or a block of whole warps; every one of them gets it.
template <class Op> __device__ float reduce(float x, float neutral, unsigned threads) {
  __shared__ float parts[32];
  for (int o = 16; o > 0; o >>= 1) x = Op::join(x, __shfl_xor_sync(~0u, x, o));
  if (threads <= 32) return x;
  __syncthreads();
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = x;
  __syncthreads();
  x = (threadIdx.x & 31) < (threads >> 5) ? parts[threadIdx.x & 31] : neutral;
  for (int o = 16; o > 0; o >>= 1) x = Op::join(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
__device__ float sum(float x) { return reduce<Sum>(x, 0, blockDim.x); }

// Neighbours that are read and written at once, 16 bytes of them where they lie so.
template <class T, int N> struct __align__(N * sizeof(T)) Pack { T at[N]; };
template <class T> __device__ bool packed(i64 width, i64 addresses) {
  return width % (16 / sizeof(T)) == 0 && (addresses & 15) == 0;
}
template <class T, int N> __device__ Pack<T, N> pack(const T *x, i64 i) { return ((const Pack<T, N> *)x)[i]; }
template <class T, int N> __device__ void put(T *x, i64 i, const Pack<T, N> &p) { ((Pack<T, N> *)x)[i] = p; }
#define NEIGHBOURS(j) _Pragma("unroll") for (int j = 0; j < N; j++)
// All of `n` packs, by all threads of a row of the grid.
#define ALL(v, n) for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < (unsigned)(n); v += gridDim.x * blockDim.x)

// A row of up to 16 numbers a thread of a block, or of up to five packs a lane of a warp (WARP), stays in registers. Where it lies
// so that 16 bytes can be read at once, as it always does for a warp, a thread holds neighbours.
template <class T, bool WARP = false> struct Row {
  enum { N = 16 / sizeof(T), HELD = WARP ? 5 * N : 16 };
  i64 n;
  bool aligned;

  // For rows at these addresses, or-ed.
  __device__ Row(i64 n, i64 addresses) : n(n), aligned(n % N == 0 && (addresses & 15) == 0) {}
  __device__ unsigned threads() const { return WARP ? 32 : blockDim.x; }
  __device__ unsigned thread() const { return WARP ? threadIdx.x & 31 : threadIdx.x; }
  __device__ bool wide() const { return WARP || aligned; }
  __device__ i64 index(int k) const {
    return wide() ? (thread() + k / N * (i64)threads()) * N + k % N : thread() + k * (i64)threads();
  }
  __device__ bool has(int k) const { return index(k) < n; }
  __device__ float total(float x) const { return reduce<Sum>(x, 0, threads()); }

  // Places past the row's end become `rest`.
  __device__ void read(const T *x, float *v, float rest) const {
    if (wide()) {
      #pragma unroll
      for (int k = 0; k < HELD; k += N) {
        bool in = has(k);
        uint4 pack = in ? *(const uint4 *)(x + index(k)) : uint4();
        #pragma unroll
        for (int j = 0; j < N; j++) v[k + j] = in ? load(((const T *)&pack)[j]) : rest;
      }
    } else {
      #pragma unroll
      for (int k = 0; k < HELD; k++) v[k] = has(k) ? load(x[index(k)]) : rest;
    }
  }

  __device__ void write(T *y, const float *v) const {
    if (wide()) {
      #pragma unroll
      for (int k = 0; k < HELD; k += N) if (has(k)) {
        uint4 pack;
        #pragma unroll
        for (int j = 0; j < N; j++) store((T *)&pack + j, v[k + j]);
        *(uint4 *)(y + index(k)) = pack;
      }
    } else {
      #pragma unroll
      for (int k = 0; k < HELD; k++) if (has(k)) store(y + index(k), v[k]);
    }
  }
};

#define EACH(k) _Pragma("unroll") for (int k = 0; k < Row::HELD; k++)

// Over the first `keys` of each row; the others become 0.
template <class T> __device__ void softmax(const T *x, T *y, i64 n, i64 keys) {
  typedef Row<T> Row;
  x += blockIdx.x * n; y += blockIdx.x * n;
  Row row(n, (i64)x | (i64)y);
  float v[Row::HELD], m = -INF, s = 0;
  row.read(x, v, -INF);
  if (keys < n) EACH(k) if (row.index(k) >= keys) v[k] = -INF;
  EACH(k) m = fmaxf(m, v[k]);
  m = reduce<Max>(m, -INF, blockDim.x);
  EACH(k) { v[k] = __expf(v[k] - m); s += v[k]; }
  s = 1 / row.total(s);
  EACH(k) v[k] *= s;
  row.write(y, v);
}

// dx = p (dp - sum(p dp))
template <class T> __device__ void softmax_gradient(const T *p, const T *dp, T *dx, i64 n) {
  typedef Row<T> Row;
  i64 at = blockIdx.x * n;
  Row row(n, (i64)p | (i64)dp | (i64)dx);
  float v[Row::HELD], d[Row::HELD], s = 0;
  row.read(p + at, v, 0); row.read(dp + at, d, 0);
  EACH(k) s += v[k] * d[k];
  s = row.total(s);
  EACH(k) v[k] *= d[k] - s;
  row.write(dx + at, v);
}

template <class Row, class T> __device__ void row_stats(const Row &row, const T *x, float eps, float *v, float &mean, float &rstd) {
  float s = 0, q = 0;
  row.read(x, v, 0);
  EACH(k) s += v[k];
  mean = row.total(s) / row.n;
  EACH(k) if (row.has(k)) { float d = v[k] - mean; q += d * d; }
  rstd = rsqrtf(row.total(q) / row.n + eps);
}

template <class Row, class T>
__device__ void layer_norm(const Row &row, const T *x, const T *gamma, const T *beta, T *y, float eps) {
  float v[Row::HELD], w[Row::HELD], mean, rstd;
  row_stats(row, x, eps, v, mean, rstd);
  row.read(gamma, w, 0);
  EACH(k) v[k] = (v[k] - mean) * rstd * w[k];
  row.read(beta, w, 0);
  EACH(k) v[k] += w[k];
  row.write(y, v);
}

// g = dy gamma; dx = rstd (g - mean(g) - xhat mean(g xhat))
template <class Row, class T>
__device__ void layer_norm_gradient(const Row &row, const T *x, const T *dy, const T *gamma, T *dx, float eps) {
  float v[Row::HELD], g[Row::HELD], w[Row::HELD], mean, rstd, a = 0, b = 0;
  row_stats(row, x, eps, v, mean, rstd);
  row.read(dy, g, 0); row.read(gamma, w, 0);
  EACH(k) {
    v[k] = (v[k] - mean) * rstd;
    g[k] *= w[k];
    a += g[k]; b += g[k] * v[k];
  }
  a = row.total(a) / row.n; b = row.total(b) / row.n;
  EACH(k) g[k] = rstd * (g[k] - a - v[k] * b);
  row.write(dx, g);
}

// The row of this warp.
__device__ i64 row_of_warp() { return blockIdx.x * (i64)(blockDim.x / 32) + threadIdx.x / 32; }

// Group norm on channels-last maps [b, pixels, c]. The sums over a group are taken in two steps: `parts` blocks for each
// sample, then one thread for each group.
//
// silu: y = z s(z), dy/dz = s (1 + z (1 - s))

__device__ float silu(float z) { return z / (1 + __expf(-z)); }
__device__ float silu_slope(float z) { float s = 1 / (1 + __expf(-z)); return s * (1 + z * (1 - s)); }

extern __shared__ float channel_sums[];

// How a block goes over pixels: `lanes` threads for the packs of one, and as many pixels at once as there are threads for.
template <int N> struct Slots {
  unsigned per, lanes, count, slot, lane;
  __device__ Slots(i64 c) : per((unsigned)c / N), lanes(min(per, blockDim.x)), count(blockDim.x / lanes), slot(threadIdx.x / lanes), lane(threadIdx.x % lanes) {}
};

// Adds up the channels of each group over the slots, and writes this block's part of the sums. A warp for each group.
__device__ void group_parts(float *partial, unsigned c, i64 groups, unsigned slots) {
  __syncthreads();
  unsigned width = c / (unsigned)groups, lane = threadIdx.x & 31;
  for (unsigned g = threadIdx.x >> 5; g < groups; g += blockDim.x >> 5) {
    float a = 0, b = 0;
    for (unsigned i = lane; i < slots * width; i += 32) {
      const float *from = channel_sums + 2 * (i / width * c + g * width + i % width);
      a += from[0]; b += from[1];
    }
    a = reduce<Sum>(a, 0, 32); b = reduce<Sum>(b, 0, 32);
    if (lane > 0) continue;
    float *to = partial + 2 * ((blockIdx.y * (i64)gridDim.x + blockIdx.x) * groups + g);
    to[0] = a; to[1] = b;
  }
}

// The group of a channel: the half keeps the rounded quotient away from whole numbers.
struct Group {
  float inverse;
  __device__ Group(i64 width) : inverse(1.0f / width) {}
  __device__ int operator()(int channel) const { return __float2int_rd((channel + 0.5f) * inverse); }
};

// Sums of x - x0 and of its square; x0, the group's first number, keeps the difference of the two from cancelling.
template <class T, int N>
__device__ void sums_packs(const T *x, float *partial, i64 first, i64 last, i64 c, i64 groups) {
  Slots<N> slots(c);
  i64 width = c / groups;
  Group group(width);
  for (unsigned i = slots.lane; slots.slot < slots.count && i < slots.per; i += slots.lanes) {
    float a[N], b[N], x0[N];
    NEIGHBOURS(j) { a[j] = 0; b[j] = 0; x0[j] = load(x[group(i * N + j) * width]); }
    #pragma unroll 4
    for (i64 p = first + slots.slot; p < last; p += slots.count) {
      Pack<T, N> in = pack<T, N>(x, p * slots.per + i);
      NEIGHBOURS(j) { float d = load(in.at[j]) - x0[j]; a[j] += d; b[j] += d * d; }
    }
    float *to = channel_sums + 2 * (slots.slot * c + i * N);
    NEIGHBOURS(j) { to[2 * j] = a[j]; to[2 * j + 1] = b[j]; }
  }
  group_parts(partial, c, groups, slots.count);
}

template <class T>
__device__ void group_sums(const T *x, float *partial, i64 pixels, i64 c, i64 groups, i64 each) {
  x += blockIdx.y * pixels * c;
  i64 first = blockIdx.x * each, last = min(first + each, pixels);
  if (packed<T>(c, (i64)x)) sums_packs<T, 16 / sizeof(T)>(x, partial, first, last, c, groups);
  else sums_packs<T, 1>(x, partial, first, last, c, groups);
}

// The sums of all parts of group blockIdx.x of sample blockIdx.y, on every thread.
__device__ void group_total(const float *partial, i64 groups, i64 parts, float &s, float &q) {
  s = 0; q = 0;
  for (i64 p = threadIdx.x; p < parts; p += blockDim.x) {
    const float *from = partial + 2 * ((blockIdx.y * parts + p) * groups + blockIdx.x);
    s += from[0]; q += from[1];
  }
  s = sum(s); q = sum(q);
}

// stats: [b, groups, (mean, 1/std)]
template <class T>
__device__ void group_stats(const T *x, const float *partial, float *stats, i64 pixels, i64 c, i64 groups, i64 parts, float eps) {
  i64 width = c / groups;
  float s, q, n = (float)(pixels * width);
  group_total(partial, groups, parts, s, q);
  if (threadIdx.x > 0) return;
  s /= n;
  stats += 2 * (blockIdx.y * groups + blockIdx.x);
  stats[0] = load(x[blockIdx.y * pixels * c + blockIdx.x * width]) + s;
  stats[1] = rsqrtf(fmaxf(q / n - s * s, 0) + eps);
}

template <class T, int N>
__device__ void norm_packs(const T *x, const float *stats, const T *gamma, const T *beta, T *y, i64 n, i64 c, Group group, bool act) {
  unsigned per = (unsigned)c / N;
  ALL(v, n / N) {
    unsigned i = v % per;
    Pack<T, N> in = pack<T, N>(x, v), scale = pack<T, N>(gamma, i), shift = pack<T, N>(beta, i), out;
    NEIGHBOURS(j) {
      const float *of = stats + 2 * group(i * N + j);
      float z = (load(in.at[j]) - of[0]) * of[1] * load(scale.at[j]) + load(shift.at[j]);
      store(out.at + j, act ? silu(z) : z);
    }
    put(y, v, out);
  }
}

template <class T>
__device__ void group_norm(const T *x, const float *stats, const T *gamma, const T *beta, T *y, i64 pixels, i64 c, i64 groups, i64 act) {
  i64 n = pixels * c;
  x += blockIdx.y * n; y += blockIdx.y * n; stats += blockIdx.y * 2 * groups;
  Group group(c / groups);
  if (packed<T>(c, (i64)x | (i64)y | (i64)gamma | (i64)beta))
    norm_packs<T, 16 / sizeof(T)>(x, stats, gamma, beta, y, n, c, group, act);
  else norm_packs<T, 1>(x, stats, gamma, beta, y, n, c, group, act);
}

// g = dz gamma at one place, and xhat there
__device__ float group_slope(float x, float dy, const float *of, float gamma, float beta, bool act, float &xhat) {
  xhat = (x - of[0]) * of[1];
  return gamma * (act ? dy * silu_slope(xhat * gamma + beta) : dy);
}

// Packs of four: for eight channels a thread has not the registers.
template <class T, int N>
__device__ void slopes_packs(const T *x, const T *dy, const float *stats, const T *gamma, const T *beta, float *partial, i64 first, i64 last, i64 c, i64 groups, bool act) {
  Slots<N> slots(c);
  Group group(c / groups);
  for (unsigned i = slots.lane; slots.slot < slots.count && i < slots.per; i += slots.lanes) {
    float a[N], b[N];
    Pack<T, N> scale = pack<T, N>(gamma, i), shift = pack<T, N>(beta, i);
    NEIGHBOURS(j) { a[j] = 0; b[j] = 0; }
    #pragma unroll 2
    for (i64 p = first + slots.slot; p < last; p += slots.count) {
      Pack<T, N> in = pack<T, N>(x, p * slots.per + i), slope = pack<T, N>(dy, p * slots.per + i);
      NEIGHBOURS(j) {
        float xhat, s = group_slope(load(in.at[j]), load(slope.at[j]), stats + 2 * group(i * N + j), load(scale.at[j]), load(shift.at[j]), act, xhat);
        a[j] += s; b[j] += s * xhat;
      }
    }
    float *to = channel_sums + 2 * (slots.slot * c + i * N);
    NEIGHBOURS(j) { to[2 * j] = a[j]; to[2 * j + 1] = b[j]; }
  }
  group_parts(partial, c, groups, slots.count);
}

template <class T>
__device__ void group_gradient_sums(const T *x, const T *dy, const float *stats, const T *gamma, const T *beta, float *partial, i64 pixels, i64 c, i64 groups, i64 each, i64 act) {
  x += blockIdx.y * pixels * c; dy += blockIdx.y * pixels * c; stats += blockIdx.y * 2 * groups;
  i64 first = blockIdx.x * each, last = min(first + each, pixels);
  if (packed<T>(c, (i64)x | (i64)dy | (i64)gamma | (i64)beta))
    slopes_packs<T, 4>(x, dy, stats, gamma, beta, partial, first, last, c, groups, act);
  else slopes_packs<T, 1>(x, dy, stats, gamma, beta, partial, first, last, c, groups, act);
}

// sums: [b, groups, (mean(g), mean(g xhat))]
extern "C" __global__ void group_means_f32(const float *partial, float *sums, i64 pixels, i64 c, i64 groups, i64 parts) {
  float s, q, n = (float)(pixels * (c / groups));
  group_total(partial, groups, parts, s, q);
  if (threadIdx.x > 0) return;
  sums += 2 * (blockIdx.y * groups + blockIdx.x);
  sums[0] = s / n; sums[1] = q / n;
}

// dx = rstd (g - mean(g) - xhat mean(g xhat))
template <class T, int N>
__device__ void gradient_packs(const T *x, const T *dy, const float *stats, const float *sums, const T *gamma, const T *beta, T *dx, i64 n, i64 c, Group group, bool act) {
  unsigned per = (unsigned)c / N;
  ALL(v, n / N) {
    unsigned i = v % per;
    Pack<T, N> in = pack<T, N>(x, v), slope = pack<T, N>(dy, v), scale = pack<T, N>(gamma, i), shift = pack<T, N>(beta, i), out;
    NEIGHBOURS(j) {
      int g = group(i * N + j);
      float xhat, s = group_slope(load(in.at[j]), load(slope.at[j]), stats + 2 * g, load(scale.at[j]), load(shift.at[j]), act, xhat);
      store(out.at + j, stats[2 * g + 1] * (s - sums[2 * g] - xhat * sums[2 * g + 1]));
    }
    put(dx, v, out);
  }
}

template <class T>
__device__ void group_gradient(const T *x, const T *dy, const float *stats, const float *sums, const T *gamma, const T *beta, T *dx, i64 pixels, i64 c, i64 groups, i64 act) {
  i64 n = pixels * c;
  x += blockIdx.y * n; dy += blockIdx.y * n; dx += blockIdx.y * n;
  stats += blockIdx.y * 2 * groups; sums += blockIdx.y * 2 * groups;
  Group group(c / groups);
  if (packed<T>(c, (i64)x | (i64)dy | (i64)dx | (i64)gamma | (i64)beta))
    gradient_packs<T, 16 / sizeof(T)>(x, dy, stats, sums, gamma, beta, dx, n, c, group, act);
  else gradient_packs<T, 1>(x, dy, stats, sums, gamma, beta, dx, n, c, group, act);
}

// y = a gelu(b) for rows (a, b); gelu(b) = b P(b), P the normal distribution
__device__ float normal(float b) { return 0.5f * (1 + erff(b * 0.70710678f)); }

// The halves of a pack, with the bias where there is one.
template <class T, int N> struct Gated {
  float a[N], b[N];
  __device__ Gated(const T *x, const T *bias, i64 from, unsigned column, unsigned per) {
    Pack<T, N> left = pack<T, N>(x, from), right = pack<T, N>(x, from + per);
    NEIGHBOURS(j) { a[j] = load(left.at[j]); b[j] = load(right.at[j]); }
    if (!bias) return;
    left = pack<T, N>(bias, column); right = pack<T, N>(bias, column + per);
    NEIGHBOURS(j) { a[j] += load(left.at[j]); b[j] += load(right.at[j]); }
  }
};

template <class T, int N> __device__ void gate_packs(const T *x, const T *bias, T *y, i64 c, i64 n) {
  unsigned per = (unsigned)c / N;
  ALL(v, n / N) {
    unsigned row = v / per;
    Gated<T, N> in(x, bias, v + (i64)row * per, v - row * per, per);
    Pack<T, N> out;
    NEIGHBOURS(j) store(out.at + j, in.a[j] * in.b[j] * normal(in.b[j]));
    put(y, v, out);
  }
}

template <class T> __device__ void geglu(const T *x, const T *bias, T *y, i64 c, i64 n) {
  if (packed<T>(c, (i64)x | (i64)bias | (i64)y)) gate_packs<T, 16 / sizeof(T)>(x, bias, y, c, n);
  else gate_packs<T, 1>(x, bias, y, c, n);
}

template <class T, int N>
__device__ void gate_gradient_packs(const T *x, const T *bias, const T *dy, T *dx, i64 c, i64 n) {
  unsigned per = (unsigned)c / N;
  ALL(v, n / N) {
    unsigned row = v / per;
    i64 from = v + (i64)row * per;
    Gated<T, N> in(x, bias, from, v - row * per, per);
    Pack<T, N> d = pack<T, N>(dy, v), da, db;
    NEIGHBOURS(j) {
      float g = in.b[j], slope = load(d.at[j]), p = normal(g);
      store(da.at + j, slope * g * p);
      store(db.at + j, slope * in.a[j] * (p + g * 0.39894228f * __expf(-0.5f * g * g)));
    }
    put(dx, from, da);
    put(dx, from + per, db);
  }
}

template <class T> __device__ void geglu_gradient(const T *x, const T *bias, const T *dy, T *dx, i64 c, i64 n) {
  if (packed<T>(c, (i64)x | (i64)bias | (i64)dy | (i64)dx)) gate_gradient_packs<T, 16 / sizeof(T)>(x, bias, dy, dx, c, n);
  else gate_gradient_packs<T, 1>(x, bias, dy, dx, c, n);
}

#define EXPORT(T, t) extern "C" { \
  __global__ void softmax_##t(const T *x, T *y, i64 n, i64 keys) { softmax(x, y, n, keys); } \
  __global__ void softmax_gradient_##t(const T *p, const T *dp, T *dx, i64 n) { softmax_gradient(p, dp, dx, n); } \
  __global__ void layer_norm_##t(const T *x, const T *g, const T *b, T *y, i64 n, float eps) { \
    i64 at = blockIdx.x * n; \
    layer_norm(Row<T>(n, (i64)x | (i64)y | (i64)g | (i64)b), x + at, g, b, y + at, eps); \
  } \
  __global__ void layer_norm_in_warps_##t(const T *x, const T *g, const T *b, T *y, i64 n, float eps, i64 rows) { \
    i64 row = row_of_warp(), at = row * n; \
    if (row < rows) layer_norm(Row<T, true>(n, 0), x + at, g, b, y + at, eps); \
  } \
  __global__ void layer_norm_gradient_##t(const T *x, const T *dy, const T *g, T *dx, i64 n, float eps) { \
    i64 at = blockIdx.x * n; \
    layer_norm_gradient(Row<T>(n, (i64)x | (i64)dy | (i64)dx | (i64)g), x + at, dy + at, g, dx + at, eps); \
  } \
  __global__ void layer_norm_gradient_in_warps_##t(const T *x, const T *dy, const T *g, T *dx, i64 n, float eps, i64 rows) { \
    i64 row = row_of_warp(), at = row * n; \
    if (row < rows) layer_norm_gradient(Row<T, true>(n, 0), x + at, dy + at, g, dx + at, eps); \
  } \
  __global__ void __launch_bounds__(512, 2) group_sums_##t(const T *x, float *partial, i64 pixels, i64 c, i64 groups, i64 each) { group_sums(x, partial, pixels, c, groups, each); } \
  __global__ void group_stats_##t(const T *x, const float *partial, float *stats, i64 pixels, i64 c, i64 groups, i64 parts, float eps) { group_stats(x, partial, stats, pixels, c, groups, parts, eps); } \
  __global__ void group_norm_##t(const T *x, const float *stats, const T *g, const T *b, T *y, i64 pixels, i64 c, i64 groups, i64 act) { group_norm(x, stats, g, b, y, pixels, c, groups, act); } \
  __global__ void __launch_bounds__(512, 2) group_gradient_sums_##t(const T *x, const T *dy, const float *stats, const T *g, const T *b, float *partial, i64 pixels, i64 c, i64 groups, i64 each, i64 act) { group_gradient_sums(x, dy, stats, g, b, partial, pixels, c, groups, each, act); } \
  __global__ void group_gradient_##t(const T *x, const T *dy, const float *stats, const float *sums, const T *g, const T *b, T *dx, i64 pixels, i64 c, i64 groups, i64 act) { group_gradient(x, dy, stats, sums, g, b, dx, pixels, c, groups, act); } \
  __global__ void geglu_##t(const T *x, const T *b, T *y, i64 c, i64 n) { geglu(x, b, y, c, n); } \
  __global__ void geglu_gradient_##t(const T *x, const T *b, const T *dy, T *dx, i64 c, i64 n) { geglu_gradient(x, b, dy, dx, c, n); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
