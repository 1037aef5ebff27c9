// Short names of types, and the loop that is unrolled. Every source begins with this file.

typedef long long i64;
typedef unsigned u32;

#define INF __int_as_float(0x7f800000)
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
