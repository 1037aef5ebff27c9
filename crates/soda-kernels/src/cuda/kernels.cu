// Reductions over rows, columns and groups, with their gradients; and copies. Every kernel that computes exists for float (f32),
// bfloat16 (bf16) and half (f16), computes in float, and gives the same bits on every run: no atomics, one order of summation.
//
// Comes after numbers.cu. No header is needed, so that NVRTC alone compiles this in well under a second.

#define INF __int_as_float(0x7f800000)

struct Sum { __device__ static float join(float a, float b) { return a + b; } };
struct Max { __device__ static float join(float a, float b) { return fmaxf(a, b); } };

// Over all threads of a block of whole warps; every thread gets it.
template <class Op> __device__ float reduce(float x, float neutral) {
  __shared__ float parts[32];
  for (int o = 16; o > 0; o >>= 1) x = Op::join(x, __shfl_xor_sync(~0u, x, o));
  if (blockDim.x <= 32) return x;
  __syncthreads();
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = x;
  __syncthreads();
  x = (threadIdx.x & 31) < (blockDim.x >> 5) ? parts[threadIdx.x & 31] : neutral;
  for (int o = 16; o > 0; o >>= 1) x = Op::join(x, __shfl_xor_sync(~0u, x, o));
  return x;
}

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

// A row of up to 16 numbers a thread stays in registers. Where it lies so that 16 bytes can be read at once, a thread holds
// neighbours.
enum { HELD = 16 };

template <class T> struct Row {
  enum { N = 16 / sizeof(T) };
  i64 n;
  bool wide;

  // For rows at these addresses, or-ed.
  __device__ Row(i64 n, i64 addresses) : n(n), wide(n % N == 0 && (addresses & 15) == 0) {}
  __device__ i64 index(int k) const {
    return wide ? (threadIdx.x + k / N * (i64)blockDim.x) * N + k % N : threadIdx.x + k * (i64)blockDim.x;
  }
  __device__ bool has(int k) const { return index(k) < n; }

  // Places past the row's end become `rest`.
  __device__ void read(const T *x, float *v, float rest) const {
    if (wide) {
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
    if (wide) {
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

#define EACH(k) _Pragma("unroll") for (int k = 0; k < HELD; k++)

// Over the first `keys` of each row; the others become 0.
template <class T> __device__ void softmax(const T *x, T *y, i64 n, i64 keys) {
  x += blockIdx.x * n; y += blockIdx.x * n;
  Row<T> row(n, (i64)x | (i64)y);
  float v[HELD], m = -INF, s = 0;
  row.read(x, v, -INF);
  if (keys < n) EACH(k) if (row.index(k) >= keys) v[k] = -INF;
  EACH(k) m = fmaxf(m, v[k]);
  m = reduce<Max>(m, -INF);
  EACH(k) { v[k] = __expf(v[k] - m); s += v[k]; }
  s = 1 / reduce<Sum>(s, 0);
  EACH(k) v[k] *= s;
  row.write(y, v);
}

// dx = p (dp - sum(p dp))
template <class T> __device__ void softmax_gradient(const T *p, const T *dp, T *dx, i64 n) {
  i64 at = blockIdx.x * n;
  Row<T> row(n, (i64)p | (i64)dp | (i64)dx);
  float v[HELD], d[HELD], s = 0;
  row.read(p + at, v, 0); row.read(dp + at, d, 0);
  EACH(k) s += v[k] * d[k];
  s = reduce<Sum>(s, 0);
  EACH(k) v[k] *= d[k] - s;
  row.write(dx + at, v);
}

template <class T> __device__ void row_stats(const Row<T> &row, const T *x, float eps, float *v, float &mean, float &rstd) {
  float s = 0, q = 0;
  row.read(x, v, 0);
  EACH(k) s += v[k];
  mean = reduce<Sum>(s, 0) / row.n;
  EACH(k) if (row.has(k)) { float d = v[k] - mean; q += d * d; }
  rstd = rsqrtf(reduce<Sum>(q, 0) / row.n + eps);
}

template <class T>
__device__ void layer_norm(const T *x, const T *gamma, const T *beta, T *y, i64 n, float eps) {
  x += blockIdx.x * n; y += blockIdx.x * n;
  Row<T> row(n, (i64)x | (i64)y | (i64)gamma | (i64)beta);
  float v[HELD], w[HELD], mean, rstd;
  row_stats(row, x, eps, v, mean, rstd);
  row.read(gamma, w, 0);
  EACH(k) v[k] = (v[k] - mean) * rstd * w[k];
  row.read(beta, w, 0);
  EACH(k) v[k] += w[k];
  row.write(y, v);
}

// g = dy gamma; dx = rstd (g - mean(g) - xhat mean(g xhat))
template <class T>
__device__ void layer_norm_gradient(const T *x, const T *dy, const T *gamma, T *dx, i64 n, float eps) {
  i64 at = blockIdx.x * n;
  Row<T> row(n, (i64)x | (i64)dy | (i64)dx | (i64)gamma);
  float v[HELD], g[HELD], w[HELD], mean, rstd, a = 0, b = 0;
  row_stats(row, x + at, eps, v, mean, rstd);
  row.read(dy + at, g, 0); row.read(gamma, w, 0);
  EACH(k) {
    v[k] = (v[k] - mean) * rstd;
    g[k] *= w[k];
    a += g[k]; b += g[k] * v[k];
  }
  a = reduce<Sum>(a, 0) / n; b = reduce<Sum>(b, 0) / n;
  EACH(k) g[k] = rstd * (g[k] - a - v[k] * b);
  row.write(dx + at, g);
}

// Group norm on channels-last maps [b, pixels, c]. The sums over a group are taken in two steps: `parts` blocks for each
// sample, then one thread for each group.
//
// silu: y = z s(z), dy/dz = s (1 + z (1 - s))

__device__ float silu(float z) { return z / (1 + __expf(-z)); }
__device__ float silu_slope(float z) { float s = 1 / (1 + __expf(-z)); return s * (1 + z * (1 - s)); }

extern __shared__ float channel_sums[];

// Adds up the channels of each group, and writes this block's part of the sums.
__device__ void group_parts(float *partial, i64 c, i64 groups) {
  __syncthreads();
  i64 width = c / groups;
  for (i64 g = threadIdx.x; g < groups; g += blockDim.x) {
    float a = 0, b = 0;
    for (i64 i = g * width; i < (g + 1) * width; i++) { a += channel_sums[2 * i]; b += channel_sums[2 * i + 1]; }
    float *to = partial + 2 * ((blockIdx.y * (i64)gridDim.x + blockIdx.x) * groups + g);
    to[0] = a; to[1] = b;
  }
}

// Sums of x - x0 and of its square; x0, the group's first number, keeps the difference of the two from cancelling.
template <class T>
__device__ void group_sums(const T *x, float *partial, i64 pixels, i64 c, i64 groups, i64 each) {
  x += blockIdx.y * pixels * c;
  i64 first = blockIdx.x * each, last = min(first + each, pixels), width = c / groups;
  for (i64 i = threadIdx.x; i < c; i += blockDim.x) {
    float a = 0, b = 0, x0 = load(x[i / width * width]);
    for (i64 p = first; p < last; p++) { float d = load(x[p * c + i]) - x0; a += d; b += d * d; }
    channel_sums[2 * i] = a; channel_sums[2 * i + 1] = b;
  }
  group_parts(partial, c, groups);
}

// The sums of all parts of group blockIdx.x of sample blockIdx.y, on every thread.
__device__ void group_total(const float *partial, i64 groups, i64 parts, float &s, float &q) {
  s = 0; q = 0;
  for (i64 p = threadIdx.x; p < parts; p += blockDim.x) {
    const float *from = partial + 2 * ((blockIdx.y * parts + p) * groups + blockIdx.x);
    s += from[0]; q += from[1];
  }
  s = reduce<Sum>(s, 0); q = reduce<Sum>(q, 0);
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

// The group of a channel: the half keeps the rounded quotient away from whole numbers.
struct Group {
  float inverse;
  __device__ Group(i64 width) : inverse(1.0f / width) {}
  __device__ int operator()(int channel) const { return __float2int_rd((channel + 0.5f) * inverse); }
};

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

template <class T>
__device__ void group_gradient_sums(const T *x, const T *dy, const float *stats, const T *gamma, const T *beta, float *partial, i64 pixels, i64 c, i64 groups, i64 each, i64 act) {
  x += blockIdx.y * pixels * c; dy += blockIdx.y * pixels * c; stats += blockIdx.y * 2 * groups;
  i64 first = blockIdx.x * each, last = min(first + each, pixels), width = c / groups;
  for (i64 i = threadIdx.x; i < c; i += blockDim.x) {
    float a = 0, b = 0, xhat, scale = load(gamma[i]), shift = load(beta[i]);
    const float *of = stats + 2 * (i / width);
    for (i64 p = first; p < last; p++) {
      float s = group_slope(load(x[p * c + i]), load(dy[p * c + i]), of, scale, shift, act, xhat);
      a += s; b += s * xhat;
    }
    channel_sums[2 * i] = a; channel_sums[2 * i + 1] = b;
  }
  group_parts(partial, c, groups);
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

template <class T, int N> __device__ void gate_packs(const T *x, T *y, i64 c, i64 n) {
  unsigned per = (unsigned)c / N;
  ALL(v, n / N) {
    i64 from = v + (i64)(v / per) * per;
    Pack<T, N> a = pack<T, N>(x, from), b = pack<T, N>(x, from + per), out;
    NEIGHBOURS(j) { float g = load(b.at[j]); store(out.at + j, load(a.at[j]) * g * normal(g)); }
    put(y, v, out);
  }
}

template <class T> __device__ void geglu(const T *x, T *y, i64 c, i64 n) {
  if (packed<T>(c, (i64)x | (i64)y)) gate_packs<T, 16 / sizeof(T)>(x, y, c, n);
  else gate_packs<T, 1>(x, y, c, n);
}

template <class T, int N> __device__ void gate_gradient_packs(const T *x, const T *dy, T *dx, i64 c, i64 n) {
  unsigned per = (unsigned)c / N;
  ALL(v, n / N) {
    i64 from = v + (i64)(v / per) * per;
    Pack<T, N> a = pack<T, N>(x, from), b = pack<T, N>(x, from + per), d = pack<T, N>(dy, v), da, db;
    NEIGHBOURS(j) {
      float g = load(b.at[j]), slope = load(d.at[j]), p = normal(g);
      store(da.at + j, slope * g * p);
      store(db.at + j, slope * load(a.at[j]) * (p + g * 0.39894228f * __expf(-0.5f * g * g)));
    }
    put(dx, from, da);
    put(dx, from + per, db);
  }
}

template <class T> __device__ void geglu_gradient(const T *x, const T *dy, T *dx, i64 c, i64 n) {
  if (packed<T>(c, (i64)x | (i64)dy | (i64)dx)) gate_gradient_packs<T, 16 / sizeof(T)>(x, dy, dx, c, n);
  else gate_gradient_packs<T, 1>(x, dy, dx, c, n);
}

// y = l diag(max(gain, least)), columns of l `[rows, k]`. What is no number is kept, to be found out.
__device__ bool counts(float gain, float least) { return !(gain <= least); }

template <class T, int N> __device__ void columns_packs(const T *l, const float *gain, const float *least, T *y, i64 k, i64 n) {
  unsigned per = (unsigned)k / N;
  ALL(v, n / N) {
    unsigned i = v % per * N;
    Pack<T, N> in = pack<T, N>(l, v), out;
    NEIGHBOURS(j) { float g = gain[i + j], m = least[i + j]; store(out.at + j, load(in.at[j]) * (counts(g, m) ? g : m)); }
    put(y, v, out);
  }
}

template <class T> __device__ void columns(const T *l, const float *gain, const float *least, T *y, i64 k, i64 n) {
  if (packed<T>(k, (i64)l | (i64)y)) columns_packs<T, 16 / sizeof(T)>(l, gain, least, y, k, n);
  else columns_packs<T, 1>(l, gain, least, y, k, n);
}

// Its gradient by the gain: of each column the sum of l dy, where the gain counts. Four packs of columns a block, eight
// lanes of each warp for one.
template <class T, int N>
__device__ void columns_gradient_packs(const T *l, const T *dy, const float *gain, const float *least, float *to, i64 rows, i64 k) {
  __shared__ float parts[32][4 * N];
  i64 per = k / N, at = blockIdx.x * 4 + threadIdx.x % 4;
  float sums[N];
  NEIGHBOURS(j) sums[j] = 0;
  if (at < per) {
    #pragma unroll 4
    for (i64 r = threadIdx.x / 4; r < rows; r += blockDim.x / 4) {
      Pack<T, N> a = pack<T, N>(l, r * per + at), b = pack<T, N>(dy, r * per + at);
      NEIGHBOURS(j) sums[j] += load(a.at[j]) * load(b.at[j]);
    }
  }
  NEIGHBOURS(j) for (int o = 4; o < 32; o *= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], o);
  if (threadIdx.x % 32 < 4) NEIGHBOURS(j) parts[threadIdx.x / 32][threadIdx.x % 4 * N + j] = sums[j];
  __syncthreads();
  i64 column = blockIdx.x * 4 * N + threadIdx.x;
  if (threadIdx.x >= 4 * N || column >= k) return;
  float s = 0;
  for (int w = 0; w < blockDim.x / 32; w++) s += parts[w][threadIdx.x];
  to[column] = counts(gain[column], least[column]) ? s : 0;
}

template <class T>
__device__ void columns_gradient(const T *l, const T *dy, const float *gain, const float *least, float *to, i64 rows, i64 k) {
  if (packed<T>(k, (i64)l | (i64)dy)) columns_gradient_packs<T, 16 / sizeof(T)>(l, dy, gain, least, to, rows, k);
  else columns_gradient_packs<T, 1>(l, dy, gain, least, to, rows, k);
}

// Many copies at once, blockIdx.y counts them.
enum { COPIES = 160 };
struct Copies { i64 from[COPIES], to[COPIES], bytes[COPIES]; };

template <class T> __device__ void copy(i64 from, i64 to, i64 bytes) {
  i64 n = bytes / sizeof(T), step = (i64)gridDim.x * blockDim.x;
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += step) ((T *)to)[i] = ((const T *)from)[i];
}

extern "C" __global__ void copies(const Copies list) {
  i64 from = list.from[blockIdx.y], to = list.to[blockIdx.y], bytes = list.bytes[blockIdx.y];
  int odd = (int)((from | to | bytes) & 15);
  if (odd == 0) copy<uint4>(from, to, bytes);
  else if (odd % 4 == 0) copy<unsigned>(from, to, bytes);
  else copy<unsigned char>(from, to, bytes);
}

#define EXPORT(T, t) extern "C" { \
  __global__ void softmax_##t(const T *x, T *y, i64 n, i64 keys) { softmax(x, y, n, keys); } \
  __global__ void softmax_gradient_##t(const T *p, const T *dp, T *dx, i64 n) { softmax_gradient(p, dp, dx, n); } \
  __global__ void layer_norm_##t(const T *x, const T *g, const T *b, T *y, i64 n, float eps) { layer_norm(x, g, b, y, n, eps); } \
  __global__ void layer_norm_gradient_##t(const T *x, const T *dy, const T *g, T *dx, i64 n, float eps) { layer_norm_gradient(x, dy, g, dx, n, eps); } \
  __global__ void group_sums_##t(const T *x, float *partial, i64 pixels, i64 c, i64 groups, i64 each) { group_sums(x, partial, pixels, c, groups, each); } \
  __global__ void group_stats_##t(const T *x, const float *partial, float *stats, i64 pixels, i64 c, i64 groups, i64 parts, float eps) { group_stats(x, partial, stats, pixels, c, groups, parts, eps); } \
  __global__ void group_norm_##t(const T *x, const float *stats, const T *g, const T *b, T *y, i64 pixels, i64 c, i64 groups, i64 act) { group_norm(x, stats, g, b, y, pixels, c, groups, act); } \
  __global__ void group_gradient_sums_##t(const T *x, const T *dy, const float *stats, const T *g, const T *b, float *partial, i64 pixels, i64 c, i64 groups, i64 each, i64 act) { group_gradient_sums(x, dy, stats, g, b, partial, pixels, c, groups, each, act); } \
  __global__ void group_gradient_##t(const T *x, const T *dy, const float *stats, const float *sums, const T *g, const T *b, T *dx, i64 pixels, i64 c, i64 groups, i64 act) { group_gradient(x, dy, stats, sums, g, b, dx, pixels, c, groups, act); } \
  __global__ void geglu_##t(const T *x, T *y, i64 c, i64 n) { geglu(x, y, c, n); } \
  __global__ void geglu_gradient_##t(const T *x, const T *dy, T *dx, i64 c, i64 n) { geglu_gradient(x, dy, dx, c, n); } \
  __global__ void columns_##t(const T *l, const float *gain, const float *least, T *y, i64 k, i64 n) { columns(l, gain, least, y, k, n); } \
  __global__ void columns_gradient_##t(const T *l, const T *dy, const float *gain, const float *least, float *to, i64 rows, i64 k) { columns_gradient(l, dy, gain, least, to, rows, k); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
