// The dtypes that kernels read and write, and their conversion. All kernels compute in float.

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

__device__ float load(float x) { return x; }
__device__ float load(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ float load(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
__device__ void store(float *to, float x) { *to = x; }
// Rounds to nearest, ties to even. Chips before 8.0 have no instruction for it.
__device__ void store(bf16 *to, float x) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  unsigned bits = __float_as_uint(x);
  to->bits = x != x ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#endif
}
__device__ void store(f16 *to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x)); }
