"""Times the attention kernels of compute capability 9.0 beside those that PyTorch calls.

    python attention.py [--heads 24] [--tokens 4608] [--width 128] [--batch 1]

Run it from the root of the workspace, with PyTorch, on a Hopper card. The kernels are compiled by NVRTC from
`crates/soda-kernels/src/cuda/src`, and checked against a softmax in f32. Prints a line of JSON for each implementation: milliseconds forward and backward.
"""

import argparse
import ctypes
import glob
import json
import struct
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SOURCES = Path("crates/soda-kernels/src/cuda/src")
FILES = ["prelude.cuh", "attention/attention.cuh", "attention/attention_sm90.cu"]
KERNELS = ["attention_forward", "attention_gradient_queries", "attention_gradient_keys"]
ROWS, STAGES = 64, 2
cuda = ctypes.CDLL("libcuda.so.1")


def nvrtc():
    """Opens the NVRTC that PyTorch brings, or that of the toolkit."""
    folders = [f"{folder}/nvidia/*/lib" for folder in sys.path] + ["/usr/local/cuda/lib64"]
    found = [path for folder in folders for path in glob.glob(f"{folder}/libnvrtc.so*")]
    return ctypes.CDLL(found[0] if found else "libnvrtc.so")


def compiled(width):
    """Compiles the sources for heads of `width` channels in bfloat16. Returns the kernels by name."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    source = "".join((SOURCES / file).read_text() for file in FILES).encode()
    options = [b"--gpu-architecture=sm_90a", b"-DNUMBER=bf16", b"-DBF16=1", f"-DD={-(-width // 16) * 16}".encode()]
    library.nvrtcCreateProgram(ctypes.byref(program), source, b"attention.cu", 0, None, None)
    if library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
        sys.exit("NVRTC cannot compile the sources")
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    image, module = ctypes.create_string_buffer(size.value), ctypes.c_void_p()
    library.nvrtcGetCUBIN(program, image)
    if cuda.cuModuleLoadData(ctypes.byref(module), image):
        sys.exit("the card does not load the kernels: they need compute capability 9.0")
    kernels = {}
    for name in KERNELS:
        kernels[name] = ctypes.c_void_p()
        cuda.cuModuleGetFunction(ctypes.byref(kernels[name]), module, name.encode())
    return kernels


def launch(kernel, grid, shared, arguments):
    """Launches blocks of 128 threads. Every argument has eight bytes."""
    values = (ctypes.c_uint64 * len(arguments))(*arguments)
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(values) + 8 * i for i in range(len(arguments))))
    cuda.cuFuncSetAttribute(kernel, 8, shared)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    error = cuda.cuLaunchKernel(kernel, *grid, 1, 128, 1, 1, shared, stream, pointers, None)
    if error:
        sys.exit(f"cuLaunchKernel: error {error}")


class Attention:
    """The kernels for tensors [b, h, n, d]."""

    def __init__(self, q, k, v, g):
        self.q, self.k, self.v, self.g = q, k, v, g
        self.batch, self.heads, self.queries, self.width = q.shape
        self.keys, self.kernels = k.shape[2], compiled(self.width)
        self.tile = ROWS * 128 * (2 if self.width > 64 else 1)
        self.o, self.dq, self.dk, self.dv = (self.empty(rows) for rows in (self.queries, self.queries, self.keys, self.keys))
        self.lse = torch.empty(self.batch, self.heads, self.queries, device="cuda")
        self.delta = torch.empty_like(self.lse)

    def empty(self, rows):
        return torch.empty(self.batch, rows, self.heads, self.width, device="cuda", dtype=self.q.dtype).transpose(1, 2)

    def arguments(self, tensors, before, strided):
        sizes = [self.queries, self.keys, self.width, self.heads]
        strides = [tensor.stride(axis) for tensor in strided for axis in (0, 1, 2)]
        scale = struct.unpack("<I", struct.pack("<f", self.width**-0.5))[0]
        return [tensor.data_ptr() for tensor in tensors] + before + sizes + strides + [scale]

    def grid(self, rows):
        return [-(-rows // ROWS), self.batch * self.heads]

    def forward(self):
        q, k, v, o = self.q, self.k, self.v, self.o
        arguments = self.arguments([q, k, v, o, self.lse], [], [q, k, v, o])
        launch(self.kernels[KERNELS[0]], self.grid(self.queries), (2 * STAGES + 1) * self.tile + 1024, arguments)

    def backward(self):
        q, k, v, g, o, dq, dk, dv = self.q, self.k, self.v, self.g, self.o, self.dq, self.dk, self.dv
        tensors = [q, k, v, g, o, self.lse, self.delta, dq]
        arguments = self.arguments(tensors, [], [q, k, v, g, o, dq])
        launch(self.kernels[KERNELS[1]], self.grid(self.queries), 2 * STAGES * self.tile + 1024, arguments)
        # One part of the queries: a null pointer for sums, the blocks of keys, and the queries of a part.
        parts = [0, -(-self.keys // ROWS), -(-self.queries // ROWS) * ROWS]
        arguments = self.arguments([q, k, v, g, self.lse, self.delta, dk, dv], parts, [q, k, v, g, dk, dv])
        shared = (2 + 2 * STAGES) * self.tile + STAGES * 2 * ROWS * 4 + 1024
        launch(self.kernels[KERNELS[2]], self.grid(self.keys), shared, arguments)


def milliseconds(run, count=20):
    for _ in range(3):
        run()
    begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
    begin.record()
    for _ in range(count):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / count


def difference(ours, theirs):
    """The largest difference relative to the largest number; NaN if any is NaN."""
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def check(width):
    """Compares with a softmax in f32, for numbers of queries and keys that fill no tile."""
    q, k, v, g = (random(2, 3, rows, width) for rows in (450, 330, 330, 450))
    ours = Attention(q, k, v, g)
    ours.forward()
    ours.backward()
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    value = torch.softmax(leaves[0] @ leaves[1].transpose(2, 3) * width**-0.5, -1) @ leaves[2]
    value.backward(g.float())
    pairs = zip([ours.o, ours.dq, ours.dk, ours.dv], [value, *(leaf.grad for leaf in leaves)])
    errors = [difference(a, b) for a, b in pairs]
    # Some roundings of bfloat16, 2^-8 each. NaN fails too.
    if not all(error < 2e-2 for error in errors):
        sys.exit(f"the kernels are wrong: {errors}")


def random(batch, heads, rows, width):
    return torch.randn(batch, rows, heads, width, device="cuda", dtype=torch.bfloat16).transpose(1, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=4608)
    parser.add_argument("--width", type=int, default=128, help="channels of a head: 40, 48, 56, 64, 120 or 128")
    args = parser.parse_args()
    check(args.width)
    q, k, v, g = (random(args.batch, args.heads, args.tokens, args.width) for _ in range(4))
    ours = Attention(q, k, v, g)
    rows = [("soda", milliseconds(ours.forward), milliseconds(ours.backward))]
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    for name, backend in [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]:
        with sdpa_kernel(backend):
            forward = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v))
            both = milliseconds(lambda: F.scaled_dot_product_attention(*leaves).backward(g))
        rows.append((name, forward, both - forward))
    for name, forward, backward in rows:
        print(json.dumps(dict(name=name, **vars(args), forward_ms=round(forward, 3), backward_ms=round(backward, 3))))


if __name__ == "__main__":
    main()
