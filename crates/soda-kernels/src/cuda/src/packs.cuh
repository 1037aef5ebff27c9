// Reductions over threads, and packs: neighbouring numbers that a thread reads and writes at once.

struct Sum { __device__ static float combine(float a, float b) { return a + b; } };
struct Max { __device__ static float combine(float a, float b) { return fmaxf(a, b); } };

// Reduces over `threads` threads, a warp or a block of whole warps. Every thread gets the result.
template <class Op> __device__ float reduce(float x, float neutral, unsigned threads) {
  __shared__ float parts[32];
  for (int o = 16; o > 0; o >>= 1) x = Op::combine(x, __shfl_xor_sync(~0u, x, o));
  if (threads <= 32) return x;
  __syncthreads();
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = x;
  __syncthreads();
  x = (threadIdx.x & 31) < (threads >> 5) ? parts[threadIdx.x & 31] : neutral;
  for (int o = 16; o > 0; o >>= 1) x = Op::combine(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
__device__ float sum(float x) { return reduce<Sum>(x, 0, blockDim.x); }

// N neighbours that are read and written at once: 16 bytes if rows are aligned to that.
template <class T, int N> struct __align__(N * sizeof(T)) Pack { T at[N]; };
template <class T> __device__ bool packs_aligned(i64 width, i64 addresses) {
  return width % (16 / sizeof(T)) == 0 && (addresses & 15) == 0;
}
template <class T, int N> __device__ Pack<T, N> load_pack(const T *x, i64 i) { return ((const Pack<T, N> *)x)[i]; }
template <class T, int N> __device__ void store_pack(T *x, i64 i, const Pack<T, N> &p) { ((Pack<T, N> *)x)[i] = p; }
#define EACH_IN_PACK(j) _Pragma("unroll") for (int j = 0; j < N; j++)
// A loop over `n` packs by all threads of a row of the grid.
#define EACH_OF_GRID(v, n) for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < (unsigned)(n); v += gridDim.x * blockDim.x)
