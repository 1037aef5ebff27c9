// Rows that stay in registers. Comes after packs.cuh.

// A row stays in the registers of a block, up to 16 numbers a thread, or of a warp (WARP), up to five packs a
// lane. A thread has neighbours if 16 bytes can be read at once, as is always the case for a warp.
template <class T, bool WARP = false> struct Row {
  enum { IN_WARP = WARP, N = 16 / sizeof(T), HELD = WARP ? 5 * N : 16 };
  i64 n;
  int packs;
  bool aligned;

  // For rows at these addresses, combined by bitwise or.
  __device__ Row(i64 n, i64 addresses) : n(n), packs((int)(n / N)), aligned(n % N == 0 && (addresses & 15) == 0) {}
  __device__ unsigned threads() const { return WARP ? 32 : blockDim.x; }
  __device__ unsigned thread() const { return WARP ? threadIdx.x & 31 : threadIdx.x; }
  __device__ bool wide() const { return WARP || aligned; }
  __device__ i64 index(int k) const {
    return wide() ? (thread() + k / N * (i64)threads()) * N + k % N : thread() + k * (i64)threads();
  }
  // A pack exists as a whole, so that one comparison serves all of its numbers.
  __device__ bool has(int k) const { return wide() ? (int)(thread() + k / N * threads()) < packs : index(k) < n; }
  __device__ float total(float x) const { return reduce<Sum>(x, 0, threads()); }

  // Numbers past the end of the row are `padding`.
  __device__ void read(const T *x, float *v, float padding) const {
    if (wide()) {
      #pragma unroll
      for (int k = 0; k < HELD; k += N) {
        bool in = has(k);
        uint4 pack = in ? *(const uint4 *)(x + index(k)) : uint4();
        #pragma unroll
        for (int j = 0; j < N; j++) v[k + j] = in ? load(((const T *)&pack)[j]) : padding;
      }
    } else {
      #pragma unroll
      for (int k = 0; k < HELD; k++) v[k] = has(k) ? load(x[index(k)]) : padding;
    }
  }

  __device__ void write(T *y, const float *v) const {
    if (wide()) {
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

#define EACH_HELD(k) _Pragma("unroll") for (int k = 0; k < Row::HELD; k++)
