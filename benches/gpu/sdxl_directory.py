"""Writes a full-size SDXL directory with random f16 weights, for timing whole commands.

    python sdxl_directory.py FOLDER path/to/tokenizer

The networks have the published sizes. Values do not matter for speed, except that they must be finite all the way
to the picture, so residual branches are small. The tokenizer is any CLIP tokenizer; its ids must fit the vocabulary.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers_step import SDXL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
TEXT_2 = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
)
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    sample_size=1024,
    scaling_factor=0.13025,
    force_upcast=True,
)


def save(model: torch.nn.Module, folder: Path) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The last layers of residual branches.
            if name.endswith(("to_out.0.weight", "ff.net.2.weight", "conv2.weight", "out_proj.weight", "fc2.weight")):
                parameter.mul_(0.1)
    model.half().cpu().save_pretrained(folder)


def main(folder: Path, tokenizer: Path) -> None:
    torch.manual_seed(0)
    ids = json.loads((tokenizer.parent / "text_encoder/config.json").read_text())
    ids = {name: ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        save(CLIPTextModel(CLIPTextConfig(vocab_size=49408, **TEXT, **ids)), folder / "text_encoder")
        save(CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=49408, **TEXT_2, **ids)), folder / "text_encoder_2")
        save(AutoencoderKL(**VAE), folder / "vae")
        save(UNet2DConditionModel(**SDXL), folder / "unet")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizer, folder / name)
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    ).save_pretrained(folder / "scheduler")
    parts = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
