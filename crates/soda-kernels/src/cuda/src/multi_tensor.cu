// Copies of many tensors in one launch.

// blockIdx.y is the index of a copy.
enum { COPIES = 160 };
struct CopyList { i64 from[COPIES], to[COPIES], bytes[COPIES]; };

template <class T> __device__ void copy_as(i64 from, i64 to, i64 bytes) {
  i64 n = bytes / sizeof(T), step = (i64)gridDim.x * blockDim.x;
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += step) ((T *)to)[i] = ((const T *)from)[i];
}

extern "C" __global__ void multi_tensor_copy(const CopyList list) {
  i64 from = list.from[blockIdx.y], to = list.to[blockIdx.y], bytes = list.bytes[blockIdx.y];
  int odd = (int)((from | to | bytes) & 15);
  if (odd == 0) copy_as<uint4>(from, to, bytes);
  else if (odd % 4 == 0) copy_as<unsigned>(from, to, bytes);
  else copy_as<unsigned char>(from, to, bytes);
}
