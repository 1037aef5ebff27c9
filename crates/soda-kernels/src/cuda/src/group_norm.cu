// Group norm with an optional SiLU, and its gradient. Comes after packs.cuh.
//
// Maps are channels last, [b, pixels, c]. The sums over a group take two steps: `parts` blocks for each
// sample, then one block for each group.
//
// SiLU: y = z s(z), dy/dz = s (1 + z (1 - s))

__device__ float silu(float z) { return z / (1 + __expf(-z)); }
__device__ float silu_slope(float z) { float s = 1 / (1 + __expf(-z)); return s * (1 + z * (1 - s)); }

extern __shared__ float channel_sums[];

// How a block iterates over pixels: `lanes` threads for the packs of a pixel, and as many pixels at once as
// there are threads for.
template <int N> struct PixelSlots {
  unsigned per_row, lanes, count, slot, lane;
  __device__ PixelSlots(i64 c) : per_row((unsigned)c / N), lanes(min(per_row, blockDim.x)), count(blockDim.x / lanes), slot(threadIdx.x / lanes), lane(threadIdx.x % lanes) {}
};

// Sums the channels of each group over the slots and writes this block's part of the sums. One warp sums a
// group.
__device__ void write_group_parts(float *partial, unsigned c, i64 groups, unsigned slots) {
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

// The group of a channel. The half keeps the rounded quotient away from integers.
struct GroupOf {
  float inverse;
  __device__ GroupOf(i64 width) : inverse(1.0f / width) {}
  __device__ int operator()(int channel) const { return __float2int_rd((channel + 0.5f) * inverse); }
};

// Sums of x - x0 and of its square. x0 is the first number of the group, which avoids cancellation in the
// variance.
template <class T, int N>
__device__ void group_sums_packs(const T *x, float *partial, i64 first, i64 last, i64 c, i64 groups) {
  PixelSlots<N> slots(c);
  i64 width = c / groups;
  GroupOf group(width);
  for (unsigned i = slots.lane; slots.slot < slots.count && i < slots.per_row; i += slots.lanes) {
    float a[N], b[N], x0[N];
    EACH_IN_PACK(j) { a[j] = 0; b[j] = 0; x0[j] = load(x[group(i * N + j) * width]); }
    #pragma unroll 4
    for (i64 p = first + slots.slot; p < last; p += slots.count) {
      Pack<T, N> in = load_pack<T, N>(x, p * slots.per_row + i);
      EACH_IN_PACK(j) { float d = load(in.at[j]) - x0[j]; a[j] += d; b[j] += d * d; }
    }
    float *to = channel_sums + 2 * (slots.slot * c + i * N);
    EACH_IN_PACK(j) { to[2 * j] = a[j]; to[2 * j + 1] = b[j]; }
  }
  write_group_parts(partial, c, groups, slots.count);
}

template <class T>
__device__ void group_sums(const T *x, float *partial, i64 pixels, i64 c, i64 groups, i64 pixels_per_part) {
  x += blockIdx.y * pixels * c;
  i64 first = blockIdx.x * pixels_per_part, last = min(first + pixels_per_part, pixels);
  if (packs_aligned<T>(c, (i64)x)) group_sums_packs<T, 16 / sizeof(T)>(x, partial, first, last, c, groups);
  else group_sums_packs<T, 1>(x, partial, first, last, c, groups);
}

// The sums over all parts of group blockIdx.x of sample blockIdx.y, on every thread.
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
__device__ void group_norm_packs(const T *x, const float *stats, const T *gamma, const T *beta, T *y, i64 n, i64 c, GroupOf group, bool with_silu) {
  unsigned per_row = (unsigned)c / N;
  EACH_OF_GRID(v, n / N) {
    unsigned i = v % per_row;
    Pack<T, N> in = load_pack<T, N>(x, v), scale = load_pack<T, N>(gamma, i), shift = load_pack<T, N>(beta, i), out;
    EACH_IN_PACK(j) {
      const float *of = stats + 2 * group(i * N + j);
      float z = (load(in.at[j]) - of[0]) * of[1] * load(scale.at[j]) + load(shift.at[j]);
      store(out.at + j, with_silu ? silu(z) : z);
    }
    store_pack(y, v, out);
  }
}

template <class T>
__device__ void group_norm(const T *x, const float *stats, const T *gamma, const T *beta, T *y, i64 pixels, i64 c, i64 groups, i64 with_silu) {
  i64 n = pixels * c;
  x += blockIdx.y * n; y += blockIdx.y * n; stats += blockIdx.y * 2 * groups;
  GroupOf group(c / groups);
  if (packs_aligned<T>(c, (i64)x | (i64)y | (i64)gamma | (i64)beta))
    group_norm_packs<T, 16 / sizeof(T)>(x, stats, gamma, beta, y, n, c, group, with_silu);
  else group_norm_packs<T, 1>(x, stats, gamma, beta, y, n, c, group, with_silu);
}

// g = dz gamma of one number, and its xhat
__device__ float group_slope(float x, float dy, const float *of, float gamma, float beta, bool with_silu, float &xhat) {
  xhat = (x - of[0]) * of[1];
  return gamma * (with_silu ? dy * silu_slope(xhat * gamma + beta) : dy);
}

// In packs of four: eight channels a thread would need too many registers.
template <class T, int N>
__device__ void group_gradient_sums_packs(const T *x, const T *dy, const float *stats, const T *gamma, const T *beta, float *partial, i64 first, i64 last, i64 c, i64 groups, bool with_silu) {
  PixelSlots<N> slots(c);
  GroupOf group(c / groups);
  for (unsigned i = slots.lane; slots.slot < slots.count && i < slots.per_row; i += slots.lanes) {
    float a[N], b[N];
    Pack<T, N> scale = load_pack<T, N>(gamma, i), shift = load_pack<T, N>(beta, i);
    EACH_IN_PACK(j) { a[j] = 0; b[j] = 0; }
    #pragma unroll 2
    for (i64 p = first + slots.slot; p < last; p += slots.count) {
      Pack<T, N> in = load_pack<T, N>(x, p * slots.per_row + i), slope = load_pack<T, N>(dy, p * slots.per_row + i);
      EACH_IN_PACK(j) {
        float xhat, s = group_slope(load(in.at[j]), load(slope.at[j]), stats + 2 * group(i * N + j), load(scale.at[j]), load(shift.at[j]), with_silu, xhat);
        a[j] += s; b[j] += s * xhat;
      }
    }
    float *to = channel_sums + 2 * (slots.slot * c + i * N);
    EACH_IN_PACK(j) { to[2 * j] = a[j]; to[2 * j + 1] = b[j]; }
  }
  write_group_parts(partial, c, groups, slots.count);
}

template <class T>
__device__ void group_gradient_sums(const T *x, const T *dy, const float *stats, const T *gamma, const T *beta, float *partial, i64 pixels, i64 c, i64 groups, i64 pixels_per_part, i64 with_silu) {
  x += blockIdx.y * pixels * c; dy += blockIdx.y * pixels * c; stats += blockIdx.y * 2 * groups;
  i64 first = blockIdx.x * pixels_per_part, last = min(first + pixels_per_part, pixels);
  if (packs_aligned<T>(c, (i64)x | (i64)dy | (i64)gamma | (i64)beta))
    group_gradient_sums_packs<T, 4>(x, dy, stats, gamma, beta, partial, first, last, c, groups, with_silu);
  else group_gradient_sums_packs<T, 1>(x, dy, stats, gamma, beta, partial, first, last, c, groups, with_silu);
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
__device__ void group_gradient_packs(const T *x, const T *dy, const float *stats, const float *sums, const T *gamma, const T *beta, T *dx, i64 n, i64 c, GroupOf group, bool with_silu) {
  unsigned per_row = (unsigned)c / N;
  EACH_OF_GRID(v, n / N) {
    unsigned i = v % per_row;
    Pack<T, N> in = load_pack<T, N>(x, v), slope = load_pack<T, N>(dy, v), scale = load_pack<T, N>(gamma, i), shift = load_pack<T, N>(beta, i), out;
    EACH_IN_PACK(j) {
      int g = group(i * N + j);
      float xhat, s = group_slope(load(in.at[j]), load(slope.at[j]), stats + 2 * g, load(scale.at[j]), load(shift.at[j]), with_silu, xhat);
      store(out.at + j, stats[2 * g + 1] * (s - sums[2 * g] - xhat * sums[2 * g + 1]));
    }
    store_pack(dx, v, out);
  }
}

template <class T>
__device__ void group_gradient(const T *x, const T *dy, const float *stats, const float *sums, const T *gamma, const T *beta, T *dx, i64 pixels, i64 c, i64 groups, i64 with_silu) {
  i64 n = pixels * c;
  x += blockIdx.y * n; dy += blockIdx.y * n; dx += blockIdx.y * n;
  stats += blockIdx.y * 2 * groups; sums += blockIdx.y * 2 * groups;
  GroupOf group(c / groups);
  if (packs_aligned<T>(c, (i64)x | (i64)dy | (i64)dx | (i64)gamma | (i64)beta))
    group_gradient_packs<T, 16 / sizeof(T)>(x, dy, stats, sums, gamma, beta, dx, n, c, group, with_silu);
  else group_gradient_packs<T, 1>(x, dy, stats, sums, gamma, beta, dx, n, c, group, with_silu);
}

#define EXPORT(T, t) extern "C" { \
  __global__ void __launch_bounds__(512, 2) group_sums_##t(const T *x, float *partial, i64 pixels, i64 c, i64 groups, i64 pixels_per_part) { group_sums(x, partial, pixels, c, groups, pixels_per_part); } \
  __global__ void group_stats_##t(const T *x, const float *partial, float *stats, i64 pixels, i64 c, i64 groups, i64 parts, float eps) { group_stats(x, partial, stats, pixels, c, groups, parts, eps); } \
  __global__ void group_norm_##t(const T *x, const float *stats, const T *g, const T *b, T *y, i64 pixels, i64 c, i64 groups, i64 with_silu) { group_norm(x, stats, g, b, y, pixels, c, groups, with_silu); } \
  __global__ void __launch_bounds__(512, 2) group_gradient_sums_##t(const T *x, const T *dy, const float *stats, const T *g, const T *b, float *partial, i64 pixels, i64 c, i64 groups, i64 pixels_per_part, i64 with_silu) { group_gradient_sums(x, dy, stats, g, b, partial, pixels, c, groups, pixels_per_part, with_silu); } \
  __global__ void group_gradient_##t(const T *x, const T *dy, const float *stats, const float *sums, const T *g, const T *b, T *dx, i64 pixels, i64 c, i64 groups, i64 with_silu) { group_gradient(x, dy, stats, sums, g, b, dx, pixels, c, groups, with_silu); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
