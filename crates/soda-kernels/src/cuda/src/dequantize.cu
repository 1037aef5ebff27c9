// Numbers of quantized matrices. Comes after packs.cuh. A thread writes eight numbers of one block at a time.

// The values of NF4 of bitsandbytes (quantize/format.rs).
__constant__ float NF4[16] = {
  -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
  0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// The formats by their number in the launcher.
enum { INT8, FP8, NF4_NESTED };

// E4M3 is f16 with other exponents: shifted to its place, and times two to the power of the difference.
__device__ float e4m3(unsigned code) {
  f16 x = {(unsigned short)((code & 0x80) << 8 | (code & 0x7f) << 7)};
  return load(x) * 256;
}

// y[i] = table[code i] * scale of the block of i, for n numbers in blocks of a multiple of 8. The
// scales of NF4 are the bytes behind the codes, times one scale for each row of `share` blocks.
template <class T> __device__ void dequantize(const unsigned *words, const float *scales, T *y, i64 n, i64 block, i64 share, int format) {
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = NF4[threadIdx.x];
  __syncthreads();
  const int N = 8;
  unsigned packs_per_block = (unsigned)(block / N);
  const unsigned char *bytes = (const unsigned char *)(words + n / N);
  EACH_OF_GRID(v, n / N) {
    unsigned b = v / packs_per_block;
    float values[N];
    float scale;
    if (format == NF4_NESTED) {
      unsigned word = words[v];
      EACH(j, N) values[j] = table[word >> 4 * j & 15];
      scale = bytes[b] * scales[b / (unsigned)share];
    } else {
      uint2 pair = ((const uint2 *)words)[v];
      EACH(j, N) {
        unsigned code = ((j < 4 ? pair.x : pair.y) >> 8 * (j % 4)) & 255;
        values[j] = format == INT8 ? (float)(signed char)code : e4m3(code);
      }
      scale = scales[b];
    }
    // 16 bytes at a time: all eight numbers of half precision, or four of float.
    const int M = 16 / sizeof(T);
    EACH(half, N / M) {
      Pack<T, M> out;
      EACH(j, M) store(out.at + j, values[half * M + j] * scale);
      store_pack(y, (i64)v * (N / M) + half, out);
    }
  }
}

#define EXPORT(T, t) extern "C" { \
  __global__ void dequantize_##t(const unsigned *words, const float *scales, T *y, i64 n, i64 block, i64 share, i64 format) { dequantize(words, scales, y, n, block, share, (int)format); } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
