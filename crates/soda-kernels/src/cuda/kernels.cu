// Reductions over rows and groups, with their gradients; and copies. Every kernel that computes exists for float (f32),
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

// stats: [b, groups, (mean, 1/std)]
template <class T>
__device__ void group_stats(const T *x, const float *partial, float *stats, i64 pixels, i64 c, i64 groups, i64 parts, float eps) {
  i64 b = blockIdx.x, width = c / groups;
  for (i64 g = threadIdx.x; g < groups; g += blockDim.x) {
    float s = 0, q = 0, n = (float)(pixels * width);
    for (i64 p = 0; p < parts; p++) {
      const float *from = partial + 2 * ((b * parts + p) * groups + g);
      s += from[0]; q += from[1];
    }
    s /= n;
    stats[2 * (b * groups + g)] = load(x[b * pixels * c + g * width]) + s;
    stats[2 * (b * groups + g) + 1] = rsqrtf(fmaxf(q / n - s * s, 0) + eps);
  }
}

template <class T>
__device__ void group_norm(const T *x, const float *stats, const T *gamma, const T *beta, T *y, i64 pixels, i64 c, i64 groups, i64 act) {
  i64 width = c / groups, n = pixels * c;
  x += blockIdx.y * n; y += blockIdx.y * n; stats += blockIdx.y * 2 * groups;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < n; at += (i64)gridDim.x * blockDim.x) {
    i64 i = at % c, g = i / width;
    float z = (load(x[at]) - stats[2 * g]) * stats[2 * g + 1] * load(gamma[i]) + load(beta[i]);
    store(y + at, act ? silu(z) : z);
  }
}

// g = dz gamma at one place, and xhat there
template <class T>
__device__ float group_slope(const T *x, const T *dy, const float *stats, const T *gamma, const T *beta, i64 at, i64 i, i64 g, i64 act, float &xhat) {
  xhat = (load(x[at]) - stats[2 * g]) * stats[2 * g + 1];
  float k = load(gamma[i]), d = load(dy[at]);
  return k * (act ? d * silu_slope(xhat * k + load(beta[i])) : d);
}

template <class T>
__device__ void group_gradient_sums(const T *x, const T *dy, const float *stats, const T *gamma, const T *beta, float *partial, i64 pixels, i64 c, i64 groups, i64 each, i64 act) {
  x += blockIdx.y * pixels * c; dy += blockIdx.y * pixels * c; stats += blockIdx.y * 2 * groups;
  i64 first = blockIdx.x * each, last = min(first + each, pixels), width = c / groups;
  for (i64 i = threadIdx.x; i < c; i += blockDim.x) {
    float a = 0, b = 0, xhat;
    for (i64 p = first; p < last; p++) {
      float s = group_slope(x, dy, stats, gamma, beta, p * c + i, i, i / width, act, xhat);
      a += s; b += s * xhat;
    }
    channel_sums[2 * i] = a; channel_sums[2 * i + 1] = b;
  }
  group_parts(partial, c, groups);
}

// sums: [b, groups, (mean(g), mean(g xhat))]
__device__ void group_means(const float *partial, float *sums, i64 pixels, i64 c, i64 groups, i64 parts) {
  i64 b = blockIdx.x;
  for (i64 g = threadIdx.x; g < groups; g += blockDim.x) {
    float s = 0, q = 0, n = (float)(pixels * (c / groups));
    for (i64 p = 0; p < parts; p++) {
      const float *from = partial + 2 * ((b * parts + p) * groups + g);
      s += from[0]; q += from[1];
    }
    sums[2 * (b * groups + g)] = s / n;
    sums[2 * (b * groups + g) + 1] = q / n;
  }
}

// dx = rstd (g - mean(g) - xhat mean(g xhat))
template <class T>
__device__ void group_gradient(const T *x, const T *dy, const float *stats, const float *sums, const T *gamma, const T *beta, T *dx, i64 pixels, i64 c, i64 groups, i64 act) {
  i64 width = c / groups, n = pixels * c;
  x += blockIdx.y * n; dy += blockIdx.y * n; dx += blockIdx.y * n;
  stats += blockIdx.y * 2 * groups; sums += blockIdx.y * 2 * groups;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < n; at += (i64)gridDim.x * blockDim.x) {
    i64 i = at % c, g = i / width;
    float xhat, s = group_slope(x, dy, stats, gamma, beta, at, i, g, act, xhat);
    store(dx + at, stats[2 * g + 1] * (s - sums[2 * g] - xhat * sums[2 * g + 1]));
  }
}

// y = a gelu(b) for rows (a, b); gelu(b) = b P(b), P the normal distribution
__device__ float normal(float b) { return 0.5f * (1 + erff(b * 0.70710678f)); }

template <class T> __device__ void geglu(const T *x, T *y, i64 c, i64 n) {
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < n; at += (i64)gridDim.x * blockDim.x) {
    i64 from = at / c * 2 * c + at % c;
    float b = load(x[from + c]);
    store(y + at, load(x[from]) * b * normal(b));
  }
}

template <class T> __device__ void geglu_gradient(const T *x, const T *dy, T *dx, i64 c, i64 n) {
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < n; at += (i64)gridDim.x * blockDim.x) {
    i64 from = at / c * 2 * c + at % c;
    float a = load(x[from]), b = load(x[from + c]), d = load(dy[at]), p = normal(b);
    store(dx + from, d * b * p);
    store(dx + from + c, d * a * (p + b * 0.39894228f * __expf(-0.5f * b * b)));
  }
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

extern "C" __global__ void group_means_f32(const float *partial, float *sums, i64 pixels, i64 c, i64 groups, i64 parts) { group_means(partial, sums, pixels, c, groups, parts); }

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
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
