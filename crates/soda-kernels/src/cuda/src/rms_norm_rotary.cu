// RMS norm of heads, their rotation, and the gradient. A warp has some heads of a token, which share the
// rotation. Comes after packs.cuh.
//
//   n = gamma x r      r = 1 / sqrt(mean(x²) + eps)      y = n cos + P n sin
//   g = gamma (dy cos + P (dy sin))      dx = r (g - x r² mean(g x))
//
// P swaps the channels of each pair. Heads are [b, n, h, d] with any strides but that of d. Rows begin at
// multiples of a quad, and d is a multiple of 4, at most 256.

enum { HEADS_OF_WARP = 2 };
// Q is the number of quads of a lane: 1 up to 128 channels, else 2.
struct Places { i64 batch, token, head; };

// The heads of this warp.
struct TurnedHeads {
  i64 b, token, first, d;
  int lane, count;
  __device__ TurnedHeads(i64 batch, i64 tokens, i64 heads, i64 d) : d(d), lane(threadIdx.x & 31) {
    unsigned groups = ((unsigned)heads + HEADS_OF_WARP - 1) / HEADS_OF_WARP;
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, t = row / groups;
    first = (row - t * groups) * HEADS_OF_WARP; b = t / (unsigned)tokens; token = t - (unsigned)b * (unsigned)tokens;
    count = b < batch ? (int)min(heads - first, (i64)HEADS_OF_WARP) : 0;
  }
  __device__ i64 at(Places p) const { return b * p.batch + token * p.token + first * p.head; }
  __device__ int existing(int h) const { return min(h, count - 1); }
  __device__ bool has(int k) const { return (lane + k * 32) * 4 < (int)d; }
  // Quad k of this lane, or zeros beyond the head.
  template <class T> __device__ void read(const T *x, int k, float *v) const {
    Pack<T, 4> pack;
    if (has(k)) pack = load_pack<T, 4>(x, lane + k * 32);
    EACH(j, 4) v[j] = has(k) ? load(pack.at[j]) : 0;
  }
  template <class T> __device__ void write(T *y, int k, const float *v) const {
    Pack<T, 4> pack;
    EACH(j, 4) store(pack.at + j, v[j]);
    if (has(k)) store_pack(y, lane + k * 32, pack);
  }
};

// The scales and the rotation of a lane's channels.
template <int Q> struct Turn {
  float w[Q][4], c[Q][4], s[Q][4];
  template <class T> __device__ Turn(const TurnedHeads &heads, const T *gamma, const float *cos, const float *sin) {
    EACH(k, Q) { heads.read(gamma, k, w[k]); heads.read(cos, k, c[k]); heads.read(sin, k, s[k]); }
  }
};

__device__ float warp_mean(float x, i64 d) { return reduce<Sum>(x, 0, 32) / (int)d; }

template <int Q, class T>
__device__ void rms_norm_rotary(const TurnedHeads &heads, const Turn<Q> &turn, const T *x, i64 x_step, T *y, i64 y_step, float eps) {
  float v[HEADS_OF_WARP][Q][4];
  // All reads begin at once: without a branch, heads beyond the last one read it again.
  EACH(h, HEADS_OF_WARP) EACH(k, Q) heads.read(x + heads.existing(h) * x_step, k, v[h][k]);
  EACH(h, HEADS_OF_WARP) if (h < heads.count) {
    float squares = 0;
    EACH(k, Q) EACH(j, 4) squares += v[h][k][j] * v[h][k][j];
    float r = rsqrtf(warp_mean(squares, heads.d) + eps);
    EACH(k, Q) {
      float out[4];
      EACH(j, 4) v[h][k][j] *= r * turn.w[k][j];
      EACH(j, 4) out[j] = v[h][k][j] * turn.c[k][j] + v[h][k][j ^ 1] * turn.s[k][j];
      heads.write(y + h * y_step, k, out);
    }
  }
}

template <int Q, class T>
__device__ void rms_norm_rotary_gradient(const TurnedHeads &heads, const Turn<Q> &turn, const T *x, i64 x_step, const T *dy, i64 dy_step, T *dx, i64 dx_step, float eps) {
  float v[HEADS_OF_WARP][Q][4], d[HEADS_OF_WARP][Q][4];
  EACH(h, HEADS_OF_WARP) EACH(k, Q) {
    heads.read(x + heads.existing(h) * x_step, k, v[h][k]);
    heads.read(dy + heads.existing(h) * dy_step, k, d[h][k]);
  }
  EACH(h, HEADS_OF_WARP) if (h < heads.count) {
    float squares = 0, along = 0, g[Q][4];
    EACH(k, Q) EACH(j, 4) {
      g[k][j] = turn.w[k][j] * (d[h][k][j] * turn.c[k][j] + d[h][k][j ^ 1] * turn.s[k][j ^ 1]);
      squares += v[h][k][j] * v[h][k][j]; along += g[k][j] * v[h][k][j];
    }
    float r = rsqrtf(warp_mean(squares, heads.d) + eps);
    along = warp_mean(along, heads.d) * r * r;
    EACH(k, Q) {
      EACH(j, 4) g[k][j] = r * (g[k][j] - v[h][k][j] * along);
      heads.write(dx + h * dx_step, k, g[k]);
    }
  }
}

#define PLACES(x) i64 x##b, i64 x##n, i64 x##h
#define EXPORT(T, t) extern "C" { \
  __global__ void rms_norm_rotary_##t(const T *x, const T *gamma, const float *cos, const float *sin, T *y, \
      i64 batch, i64 tokens, i64 heads, i64 d, i64 table, PLACES(x), PLACES(y), float eps) { \
    TurnedHeads at(batch, tokens, heads, d); \
    if (at.count == 0) return; \
    i64 of = at.b * table + at.token * d; \
    x += at.at({xb, xn, xh}); y += at.at({yb, yn, yh}); \
    if (d <= 128) rms_norm_rotary(at, Turn<1>(at, gamma, cos + of, sin + of), x, xh, y, yh, eps); \
    else rms_norm_rotary(at, Turn<2>(at, gamma, cos + of, sin + of), x, xh, y, yh, eps); \
  } \
  __global__ void rms_norm_rotary_gradient_##t(const T *x, const T *gamma, const float *cos, const float *sin, const T *dy, T *dx, \
      i64 batch, i64 tokens, i64 heads, i64 d, i64 table, PLACES(x), PLACES(dy), PLACES(dx), float eps) { \
    TurnedHeads at(batch, tokens, heads, d); \
    if (at.count == 0) return; \
    i64 of = at.b * table + at.token * d; \
    x += at.at({xb, xn, xh}); dy += at.at({dyb, dyn, dyh}); dx += at.at({dxb, dxn, dxh}); \
    if (d <= 128) rms_norm_rotary_gradient(at, Turn<1>(at, gamma, cos + of, sin + of), x, xh, dy, dyh, dx, dxh, eps); \
    else rms_norm_rotary_gradient(at, Turn<2>(at, gamma, cos + of, sin + of), x, xh, dy, dyh, dx, dxh, eps); \
  } \
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
#undef EXPORT
