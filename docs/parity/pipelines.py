"""Reference drawings of every family, by diffusers' pipelines.

Writes crates/soda-models/tests/fixtures/pipeline-*.safetensors, which tests/pipelines.rs compares
with. The networks are models.py's tiny ones with the weights of its formula, the tokenizer is the
bundled one; a fixture holds the configs, the keys, the starting noise and the latents after every
step.

    pip install torch diffusers transformers safetensors pillow
    python docs/parity/pipelines.py
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

sys.path.append(str(Path(__file__).parent))
from models import FIXTURES, UNETS, VAES, fill, uniform, value

TOKENIZER = Path(__file__).resolve().parents[2] / "examples/toybox/base/tokenizer"
PROMPTS = ["a red ball on a beach", "a blue mug"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# transformers 5 has no such level any more; diffusers 0.42 looks for it when layers are skipped.
CLIPTextModel.text_model = property(lambda self: self)


def text(kind, width: int, heads: int, **fields):
    return fill(
        kind(
            CLIPTextConfig(
                vocab_size=1000,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=3,
                num_attention_heads=heads,
                architectures=[kind.__name__],
                **fields,
            )
        )
    )


def vae(name: str) -> AutoencoderKL:
    return fill(
        AutoencoderKL(
            block_out_channels=[8, 12, 16],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            norm_num_groups=4,
            sample_size=32,
            **VAES[name],
        )
    )


def parts(name: str) -> dict:
    out = {
        "unet": fill(UNet2DConditionModel(**UNETS[f"unet-{name}"])),
        "vae": vae("vae-sdxl" if name == "sdxl" else "vae-sd"),
        "tokenizer": CLIPTokenizer.from_pretrained(TOKENIZER),
    }
    if name == "sd15":
        out["text_encoder"] = text(CLIPTextModel, 24, 3, hidden_act="quick_gelu", eos_token_id=2)
        out["scheduler"] = PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS)
    if name == "sd21":
        out["text_encoder"] = text(CLIPTextModel, 32, 4, hidden_act="gelu", eos_token_id=2)
        out["scheduler"] = DDIMScheduler(
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            **BETAS,
        )
    if name == "sdxl":
        out["text_encoder"] = text(CLIPTextModel, 12, 3, hidden_act="quick_gelu", eos_token_id=2)
        out["text_encoder_2"] = text(
            CLIPTextModelWithProjection, 20, 4, hidden_act="gelu", eos_token_id=2, projection_dim=20
        )
        out["tokenizer_2"] = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")
        out["scheduler"] = EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **BETAS)
    return out


RUNS = {
    "sd15": {"negative_prompt": "a green mug", "clip_skip": 1, "guidance_scale": 4.0},
    "sd21": {"negative_prompt": "", "guidance_scale": 7.5},
    "sdxl": {"guidance_scale": 5.0},
}
STEPS, STRENGTH, HEIGHT, WIDTH = 5, 0.6, 32, 48


def run(name: str) -> None:
    made = parts(name)
    text_to, image_to = {
        "sdxl": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline),
    }.get(name, (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline))
    safety = {} if name == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    noise = value("latents", 2, 4, HEIGHT // 4, WIDTH // 4)
    out = {"noise": noise}
    fields = dict(RUNS[name])
    if "negative_prompt" in fields:
        fields["negative_prompt"] = [fields["negative_prompt"]] * 2
    seen = []

    def keep(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"])
        return {}

    common = {"prompt": PROMPTS, "num_inference_steps": STEPS, "callback_on_step_end": keep, **fields}
    pipeline = text_to(**made, **safety)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(latents=noise, height=HEIGHT, width=WIDTH, output_type="pt", **common).images
    out["text.steps"], out["text.pictures"] = torch.stack(seen), pictures

    # From a picture: its likeliest latents, and the same noise.
    pixels = ((uniform("picture", HEIGHT * WIDTH * 3) + 1) * 127.5).astype("uint8")
    picture = Image.fromarray(pixels.reshape(HEIGHT, WIDTH, 3))
    for module in [pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_xl_img2img]:
        module.randn_tensor = lambda shape, **_: value("latents", *shape)
        module.retrieve_latents = lambda encoded, generator=None, **_: encoded.latent_dist.mode()
    seen.clear()
    pipeline = image_to(**made, **safety)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(image=picture, strength=STRENGTH, output_type="latent", **common)
    out["image.steps"] = torch.stack(seen)

    models = {k: v for k, v in made.items() if isinstance(v, torch.nn.Module)}
    configs = {
        k: (v.config.to_dict() if k.startswith("text") else dict(v.config)) for k, v in models.items()
    }
    configs["scheduler"] = json.loads(made["scheduler"].to_json_string())
    keys = {k: {n: list(t.shape) for n, t in v.state_dict().items()} for k, v in models.items()}
    fields = {**RUNS[name], "steps": STEPS, "strength": STRENGTH, "prompts": PROMPTS}
    metadata = {
        "configs": json.dumps(configs),
        "keys": json.dumps(keys, separators=(",", ":")),
        "request": json.dumps(fields),
        "index": json.dumps(dict(pipeline.config), default=str),
    }
    path = FIXTURES / f"pipeline-{name}.safetensors"
    save_file({k: v.detach().contiguous() for k, v in out.items()}, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes")


def main() -> None:
    torch.set_grad_enabled(False)
    for name in RUNS:
        run(name)


if __name__ == "__main__":
    main()
