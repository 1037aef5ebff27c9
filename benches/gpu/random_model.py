"""Writes a model of full size with random weights, in the layout of diffusers, for runs whose speed and memory are measured.

    python random_model.py --arch sd15|sdxl|flux2-klein-4b --tokenizer examples/toybox/base/tokenizer OUT

The weights are small, so that nothing overflows in half precision. They are made on a GPU where there is one. The tokenizer
is copied from a model whose `text_encoder/config.json` lies beside it; its tokens are among those of the full vocabulary.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel, UNet2DConditionModel
from diffusers_step import KLEIN_4B, SD15, SDXL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, Qwen3Config, Qwen3ForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
CLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280, hidden_act="gelu"
)
QWEN3_4B = dict(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=True,
    max_position_embeddings=40960,
    rope_parameters=dict(rope_type="default", rope_theta=1e6),
)
SDXL_VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    sample_size=1024,
    scaling_factor=0.13025,
    force_upcast=True,
)
SD15_VAE = {**SDXL_VAE, "sample_size": 512, "scaling_factor": 0.18215}


def save(folder, make, dtype):
    """Makes a network in `dtype` and saves it."""
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        network = make()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.5 * weight[0].numel() ** -0.5)
    network.to(dtype).save_pretrained(folder)
    del network
    torch.cuda.empty_cache()


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def copy_tokenizer(source, folder, most):
    shutil.copytree(source, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", {**config, "model_max_length": most})


def clip_config(tokenizer):
    """Makes configs of text encoders that know the special tokens of the tokenizer."""
    ids = json.loads((tokenizer.parent / "text_encoder" / "config.json").read_text())
    ids = {name: ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return lambda **settings: CLIPTextConfig(vocab_size=49408, **settings, **ids)


def stable_diffusion(out, tokenizer, pipeline, encoders, unet, vae, scheduler, **index):
    """Writes a pipeline with the networks of Stable Diffusion. `encoders` has a class and a config for each text encoder."""
    clip = clip_config(tokenizer)
    parts = dict(unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"])
    for end, (encoder, config) in zip(("", "_2"), encoders):
        save(out / f"text_encoder{end}", lambda: encoder(clip(**config)), torch.float16)
        copy_tokenizer(tokenizer, out / f"tokenizer{end}", 77)
        parts |= {f"text_encoder{end}": ["transformers", encoder.__name__], f"tokenizer{end}": ["transformers", "CLIPTokenizer"]}
    save(out / "unet", lambda: UNet2DConditionModel(**unet), torch.float16)
    save(out / "vae", lambda: AutoencoderKL(**vae), torch.float16)
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    write(out / "scheduler" / "scheduler_config.json", {**betas, **scheduler})
    parts["scheduler"] = ["diffusers", scheduler["_class_name"]]
    write(out / "model_index.json", {"_class_name": pipeline, **parts, **index})


def sd15(out, tokenizer):
    scheduler = dict(_class_name="PNDMScheduler", skip_prk_steps=True)
    absent = dict(safety_checker=[None, None], feature_extractor=[None, None])
    encoders = [(CLIPTextModel, CLIP_L)]
    stable_diffusion(out, tokenizer, "StableDiffusionPipeline", encoders, SD15, SD15_VAE, scheduler, **absent)


def sdxl(out, tokenizer):
    scheduler = dict(_class_name="EulerDiscreteScheduler", timestep_spacing="leading")
    encoders = [(CLIPTextModel, CLIP_L), (CLIPTextModelWithProjection, CLIP_G)]
    pipeline, zeros = "StableDiffusionXLPipeline", dict(force_zeros_for_empty_prompt=True)
    stable_diffusion(out, tokenizer, pipeline, encoders, SDXL, SDXL_VAE, scheduler, **zeros)


def flux2_klein_4b(out, tokenizer):
    bf16 = torch.bfloat16
    save(out / "text_encoder", lambda: Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B)), bf16)
    save(out / "transformer", lambda: Flux2Transformer2DModel(**KLEIN_4B), bf16)
    save(out / "vae", AutoencoderKLFlux2, bf16)
    copy_tokenizer(tokenizer, out / "tokenizer", 512)
    scheduler = dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, time_shift_type="exponential")
    write(out / "scheduler" / "scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler})
    parts = dict(
        text_encoder=["transformers", "Qwen3ForCausalLM"],
        tokenizer=["transformers", "Qwen2TokenizerFast"],
        transformer=["diffusers", "Flux2Transformer2DModel"],
        vae=["diffusers", "AutoencoderKLFlux2"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )
    write(out / "model_index.json", {"_class_name": "Flux2KleinPipeline", "is_distilled": False, **parts})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=("sd15", "sdxl", "flux2-klein-4b"), required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    {"sd15": sd15, "sdxl": sdxl, "flux2-klein-4b": flux2_klein_4b}[args.arch](args.out, args.tokenizer)


if __name__ == "__main__":
    main()
