// Checksums of memory. src/device/checksum.rs has the definition.

typedef unsigned long long u64;

__device__ u64 mixed(u64 index, u32 word) {
  u64 x = (index << 32 | word) + 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

// Adds the terms of the words of `bytes` bytes at `x` to `sum`. The last word may have two bytes only.
extern "C" __global__ void checksum(const u32 *x, i64 bytes, u64 *sum) {
  i64 words = bytes / 4, step = (i64)gridDim.x * blockDim.x, first = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  u64 own = 0;
  for (i64 i = first; i < words; i += step) own += mixed(i, x[i]);
  if (first == 0 && bytes % 4) own += mixed(words, ((const unsigned short *)x)[2 * words]);
  for (int lane = 16; lane > 0; lane /= 2) own += __shfl_down_sync(0xffffffffu, own, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, own);
}
