"""LoRA files for FLUX.2 in the names of several tools, and what diffusers makes of their names.

Writes crates/soda-pipeline/tests/fixtures/flux2, which tests/flux2_files.rs reads: one LoRA for
examples/toyflux in the names of ComfyUI and ai-toolkit (bfl), of kohya's scripts (kohya), and both as
diffusers converts them.

    pip install torch diffusers transformers peft safetensors
    python docs/parity/flux2_lora.py
"""

import sys
from pathlib import Path

import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_non_diffusers_flux2_lora_to_diffusers,
)
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent))
from models import ROOT, value

FIXTURES = ROOT / "crates/soda-pipeline/tests/fixtures/flux2"
WIDTH, MLP, RANK, ALPHA = 192, 576, 2, 3.0

# Module of the original code: outputs and inputs.
MODULES = {
    "double_blocks.0.img_attn.qkv": (3 * WIDTH, WIDTH),
    "double_blocks.1.txt_attn.qkv": (3 * WIDTH, WIDTH),
    "double_blocks.0.img_attn.proj": (WIDTH, WIDTH),
    "double_blocks.1.txt_attn.proj": (WIDTH, WIDTH),
    "double_blocks.0.img_mlp.0": (2 * MLP, WIDTH),
    "double_blocks.1.txt_mlp.2": (WIDTH, MLP),
    "single_blocks.5.linear1": (3 * WIDTH + 2 * MLP, WIDTH),
    "single_blocks.0.linear2": (WIDTH, WIDTH + MLP),
    "img_in": (WIDTH, 32),
    "single_stream_modulation.lin": (3 * WIDTH, WIDTH),
}


def save(name: str, tensors: dict) -> None:
    path = FIXTURES / f"{name}.safetensors"
    save_file({key: tensor.to(torch.float16).contiguous() for key, tensor in tensors.items()}, path)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")


def main() -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    bfl, kohya = {}, {}
    for module, (outputs, inputs) in MODULES.items():
        # Rounded first, so that the conversions start from what the files hold.
        down = (0.1 * value(f"{module}.down", RANK, inputs)).to(torch.float16).float()
        up = (0.1 * value(f"{module}.up", outputs, RANK)).to(torch.float16).float()
        bfl[f"diffusion_model.{module}.lora_A.weight"] = down
        bfl[f"diffusion_model.{module}.lora_B.weight"] = up
        if "blocks" in module:
            name = "lora_unet_" + module.replace(".", "_")
            kohya[f"{name}.lora_down.weight"] = down
            kohya[f"{name}.lora_up.weight"] = up
            kohya[f"{name}.alpha"] = torch.tensor(ALPHA)
    save("bfl", bfl)
    save("kohya", kohya)
    save("bfl-diffusers", _convert_non_diffusers_flux2_lora_to_diffusers(dict(bfl)))
    save("kohya-diffusers", _convert_kohya_flux2_lora_to_diffusers(dict(kohya)))


if __name__ == "__main__":
    main()
