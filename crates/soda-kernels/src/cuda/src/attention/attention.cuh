// What all attention kernels share: numbers, rows of heads, and fragments of tensor cores.
//
// The source is compiled for one dtype (BF16 or not) and one padded width D of a head, a multiple of 16. The
// true width d may be less by 8.
//
// Heads are [b, h, rows, d] with any strides but that of d. Rows that are read are aligned to 16 bytes, and
// rows that are written to 4.

typedef unsigned short num;

enum { STEPS = D / 16 };

__device__ u32 pack(float low, float high) {
  u32 pair;
#if BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}

__device__ float low(u32 pair) {
#if BF16
  return __uint_as_float(pair << 16);
#else
  float x; asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((num)pair)); return x;
#endif
}

__device__ float high(u32 pair) {
#if BF16
  return __uint_as_float(pair & 0xffff0000);
#else
  return low(pair >> 16);
#endif
}

__device__ float exp2_approx(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// Packs results of 16 rows and 2 x 8 columns as a first factor.
__device__ void pack_fragment(u32 *a, const float (*c)[4]) {
  a[0] = pack(c[0][0], c[0][1]); a[1] = pack(c[0][2], c[0][3]);
  a[2] = pack(c[1][0], c[1][1]); a[3] = pack(c[1][2], c[1][3]);
}

// The rows of a head: `count` of them, `d` numbers each.
struct Head {
  num *at; i64 step, count; int d;
  __device__ u32 pair(i64 row, int column) const {
    return row < count && column < d ? *(const u32 *)(at + row * step + column) : 0;
  }
  __device__ void store_rows(i64 row, int column, u32 pair) const {
    if (row < count && column < d) *(u32 *)(at + row * step + column) = pair;
  }
};

// Loads 16 rows from `first` as fragments a of `mma`, zero beyond the end of the head.
__device__ void load_fragments(u32 (*a)[4], const Head &x, i64 first) {
  int lane = threadIdx.x & 31;
  EACH(k, STEPS) EACH(i, 4) a[k][i] = x.pair(first + lane / 4 + i % 2 * 8, k * 16 + lane % 4 * 2 + i / 2 * 8);
}

// Stores 16 rows of results, times a factor for each of a lane's two rows.
__device__ void store_rows(const Head &y, i64 first, const float (*c)[4], float upper, float lower) {
  int lane = threadIdx.x & 31;
  EACH(j, 2 * STEPS) {
    int column = j * 8 + lane % 4 * 2;
    y.store_rows(first + lane / 4, column, pack(c[j][0] * upper, c[j][1] * upper));
    y.store_rows(first + lane / 4 + 8, column, pack(c[j][2] * lower, c[j][3] * lower));
  }
}

__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the newest `N` groups of copies have arrived, for the whole block.
template <int N> __device__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
  __syncthreads();
}

// Reductions over the four lanes that share a row.
__device__ float quad_sum(float x) { x += __shfl_xor_sync(~0u, x, 1); return x + __shfl_xor_sync(~0u, x, 2); }
__device__ float quad_max(float x) { x = fmaxf(x, __shfl_xor_sync(~0u, x, 1)); return fmaxf(x, __shfl_xor_sync(~0u, x, 2)); }

// The head of this block in a tensor of these strides.
#define STRIDES(x) i64 x##b, i64 x##h, i64 x##n
struct Strides { i64 batch, head, row; };
__device__ Head head(const num *x, Strides s, i64 heads, i64 count, i64 d) {
  i64 b = blockIdx.y / heads, h = blockIdx.y % heads;
  return Head{(num *)x + b * s.batch + h * s.head, s.row, count, (int)d};
}

// The gradients by keys and values are sums over queries. If few keys leave multiprocessors idle, several
// blocks take a part of the queries each, and their sums are added afterwards.
struct KeyBlock {
  i64 keys, part, begin, count;
  // Block `blockIdx.x` of `blocks` for each `chunk` of `n` queries.
  __device__ KeyBlock(i64 blocks, i64 chunk, i64 n)
    : keys(blockIdx.x % blocks), part(blockIdx.x / blocks), begin(part * chunk), count(min(n - begin, chunk)) {}
  // The sums of this part for one of both gradients, float [part, b h, 2, m, d].
  __device__ float *sums(float *parts, int which, i64 m, i64 d) const {
    return parts + ((part * gridDim.y + blockIdx.y) * 2 + which) * m * d;
  }
};

// Stores 16 rows of sums, times a factor.
__device__ void store_sums(float *y, i64 first, i64 rows, i64 d, const float (*c)[4], float factor) {
  int lane = threadIdx.x & 31;
  EACH(j, 2 * STEPS) EACH(r, 2) {
    i64 row = first + lane / 4 + 8 * r, column = j * 8 + lane % 4 * 2;
    if (row < rows && column < d) *(float2 *)(y + row * d + column) = make_float2(c[j][2 * r] * factor, c[j][2 * r + 1] * factor);
  }
}

// Adds the parts in their order.
extern "C" __global__ void __launch_bounds__(256)
attention_add_parts(const float *parts, num *dk, num *dv, i64 count, i64 m, i64 d, i64 heads, STRIDES(dk), STRIDES(dv)) {
  i64 pair = blockIdx.x * (i64)256 + threadIdx.x, row = pair / (d / 2), column = pair % (d / 2) * 2, step = gridDim.y * 2 * m * d;
  if (row >= m) return;
  EACH(which, 2) {
    const float *from = parts + (blockIdx.y * 2 + which) * m * d + row * d + column;
    float2 sum = {0, 0};
    for (i64 part = 0; part < count; part++) {
      float2 x = *(const float2 *)(from + part * step);
      sum.x += x.x; sum.y += x.y;
    }
    Head to = which == 0 ? head(dk, {dkb, dkh, dkn}, heads, m, d) : head(dv, {dvb, dvh, dvn}, heads, m, d);
    to.store_rows(row, (int)column, pack(sum.x, sum.y));
  }
}
