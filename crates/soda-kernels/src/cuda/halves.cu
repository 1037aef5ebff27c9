// A float as two numbers that tensor cores take whole (tf32, 11 bits each): what is left out is no more than float's own rounding.
// Comes after kernels.cu. blockIdx.y counts matrices of `size` numbers.

__device__ float eleven(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000) & 0xffffe000); }
__device__ void halve(float x, float *high, float *low) { *high = eleven(x); *low = eleven(x - *high); }

// x + d I, for n columns; of a matrix that is not square d is 0
extern "C" __global__ void halves(const float *x, float *high, float *low, i64 size, i64 n, float d) {
  i64 at = blockIdx.y * size;
  ALL(i, size) {
    float v = x[at + i];
    if (i % ((unsigned)n + 1) == 0) v += d;
    halve(v, high + at + i, low + at + i);
  }
}

// s, and b I + c s
extern "C" __global__ void halves_inner(const float *s, float *high, float *low, float *inner_high, float *inner_low, i64 size,
                                        i64 n, float b, float c) {
  i64 at = blockIdx.y * size;
  ALL(i, size) {
    float v = s[at + i], w = c * v;
    if (i % ((unsigned)n + 1) == 0) w += b;
    halve(v, high + at + i, low + at + i);
    halve(w, inner_high + at + i, inner_low + at + i);
  }
}
