// Split of a float into two numbers that tensor cores take exactly (TF32, 11 bits each). The error is no more
// than the rounding of float itself (Ootomo and Yokota, arXiv 2203.03341). Comes after packs.cuh. blockIdx.y
// is the index of a matrix of `size` numbers.

__device__ float round_to_tf32(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000) & 0xffffe000); }
__device__ void split_float(float x, float *high, float *low) { *high = round_to_tf32(x); *low = round_to_tf32(x - *high); }

// Splits x + d I, for n columns. d is 0 if the matrix is not square.
extern "C" __global__ void tf32_split(const float *x, float *high, float *low, i64 size, i64 n, float d) {
  i64 at = blockIdx.y * size;
  EACH_OF_GRID(i, size) {
    float v = x[at + i];
    if (i % ((unsigned)n + 1) == 0) v += d;
    split_float(v, high + at + i, low + at + i);
  }
}

// Splits s, and b I + c s.
extern "C" __global__ void tf32_split_inner(const float *s, float *high, float *low, float *inner_high, float *inner_low, i64 size,
                                        i64 n, float b, float c) {
  i64 at = blockIdx.y * size;
  EACH_OF_GRID(i, size) {
    float v = s[at + i], w = c * v;
    if (i % ((unsigned)n + 1) == 0) w += b;
    split_float(v, high + at + i, low + at + i);
    split_float(w, inner_high + at + i, inner_low + at + i);
  }
}
