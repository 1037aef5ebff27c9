"""Weights as bitsandbytes stores them, and the numbers that it reads from them.

Writes crates/soda-models/tests/fixtures/bitsandbytes.safetensors: the tensors of three weights of the bundled
transformer in NF4 with nested factors, in FP4, and in int8, and under `reference.` what bitsandbytes makes of
them in f32.

    pip install torch bitsandbytes safetensors
    python docs/parity/quantization/bitsandbytes_files.py
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[3]
BASE = ROOT / "examples/toyflux/base/transformer/diffusion_pytorch_model.safetensors"
OUT = ROOT / "crates/soda-models/tests/fixtures/bitsandbytes.safetensors"
LAYER = "transformer_blocks.0.attn"

weights = load_file(BASE)
tensors = {}
for name, kind, nested in [("to_q", "nf4", True), ("to_k", "fp4", False)]:
    key = f"{LAYER}.{name}.weight"
    weight = weights[key].float()
    codes, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    tensors[key] = codes
    tensors |= {f"{key}.{part}": value for part, value in state.as_dict(packed=True).items()}
    tensors[f"reference.{key}"] = bnb.dequantize_4bit(codes, state)

key = f"{LAYER}.to_v.weight"
codes, scales, _ = bnb.int8_vectorwise_quant(weights[key].half())
tensors[key] = codes
tensors[key.replace("weight", "SCB")] = scales
# 0: in rows.
tensors[key.replace("weight", "weight_format")] = torch.tensor(0, dtype=torch.uint8)
tensors[f"reference.{key}"] = bnb.int8_vectorwise_dequant(codes, scales).float()
save_file(tensors, OUT)
for name, tensor in tensors.items():
    print(name, tensor.dtype, tuple(tensor.shape))
