"""Writes the errors of bitsandbytes' NF4 and torchao's int8 and fp8 on one matrix, the bounds of the test `quantized.rs`.

    pip install torch torchao bitsandbytes safetensors
    python errors.py ../../../crates/soda-kernels/tests/fixtures/quantization.safetensors

The error of an output is the norm of the difference of its row of weights over the norm of the row: that of `x W'` for white
`x`. The error of the matrix is the root mean square of them. The matrix has normal numbers, and rows of different sizes.
"""

import sys

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file


def int8(matrix):
    """torchao's `Int8WeightOnlyConfig`: symmetric, a scale for each row."""
    from torchao.quantization import quantize_, int8_weight_only

    return dequantized(matrix, quantize_, int8_weight_only())


def fp8(matrix):
    """torchao's `Float8WeightOnlyConfig`: E4M3, a scale for each tensor."""
    from torchao.quantization import quantize_, float8_weight_only

    return dequantized(matrix, quantize_, float8_weight_only())


def dequantized(matrix, quantize_, config):
    layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(matrix.clone())
    model = torch.nn.Sequential(layer)
    quantize_(model, config)
    return model[0].weight.dequantize()


def nf4(matrix):
    """bitsandbytes' NF4 with double quantization, as QLoRA uses it."""
    codes, state = quantize_4bit(matrix, blocksize=64, quant_type="nf4", compress_statistics=True)
    return dequantize_4bit(codes, state)


def main(path):
    torch.manual_seed(0)
    matrix = torch.randn(64, 320) * torch.logspace(-2, 0, 64)[:, None]
    tensors = {"matrix": matrix}
    for make in (int8, fp8, nf4):
        off = (make(matrix).float() - matrix).norm(dim=1) / matrix.norm(dim=1)
        error = off.square().mean().sqrt()
        print(make.__name__, float(error))
        tensors[make.__name__] = error.reshape(1)
    save_file(tensors, path)


main(sys.argv[1])
