"""Reference drawings of Z-Image, by diffusers' ZImagePipeline.

Writes crates/soda-models/tests/fixtures/pipeline-z-image.safetensors, which tests/z_image.rs compares
with, and of which other tests make a model directory. The networks are tiny, with weights of the formula
in ../models.py, and the tokenizer is that of examples/toyflux. The fixture holds the configs, the keys, the
prompt embeds, the starting noise, the latents after every step and the pictures.

    pip install torch diffusers transformers safetensors pillow
    python docs/parity/z_image/pipeline.py
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

sys.path.append(str(Path(__file__).parents[1]))
from models import FIXTURES, ROOT, fill, value

TEXT = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 600,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
TRANSFORMER = {
    "in_channels": 4,
    "dim": 24,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 12,
    "axes_dims": [4, 4, 4],
    "axes_lens": [640, 64, 64],
}
VAE = {
    "block_out_channels": [8, 12, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

# One caption fits into 32 tokens, the other is longer, and so is what both should not show.
PROMPTS = [
    "a red ball",
    "a photo of a yellow duck with a blue hat, a green mug and a red striped ball on a sunny beach",
]
NEGATIVE = "blurry, dark, small, cropped, a grey wall, a brown table, snow, rain, night, text, noise"
# The tokenizer's own maximum is the 64 tokens that toyflux was trained on.
TOKENS = 1024
STEPS, GUIDANCE, HEIGHT, WIDTH = 4, 1.5, 24, 40


def draw(pipeline: ZImagePipeline, noise: torch.Tensor, **fields) -> tuple[torch.Tensor, torch.Tensor]:
    seen = []

    def keep(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"])
        return {}

    pictures = pipeline(
        prompt=list(PROMPTS),
        latents=noise,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        output_type="pt",
        callback_on_step_end=keep,
        **fields,
    ).images
    return torch.stack(seen), pictures


def main() -> None:
    torch.set_grad_enabled(False)
    made = {
        "transformer": fill(ZImageTransformer2DModel(**TRANSFORMER)),
        "vae": fill(AutoencoderKL(**VAE)),
        "text_encoder": fill(Qwen3ForCausalLM(Qwen3Config(**TEXT))),
        "tokenizer": AutoTokenizer.from_pretrained(
            ROOT / "examples/toyflux/base/tokenizer", model_max_length=TOKENS
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }
    pipeline = ZImagePipeline(**made)
    pipeline.set_progress_bar_config(disable=True)
    noise = value("latents", len(PROMPTS), TRANSFORMER["in_channels"], HEIGHT // 4, WIDTH // 4)
    out = {"noise": noise}
    embeds, negative = pipeline.encode_prompt(list(PROMPTS), negative_prompt=[NEGATIVE] * len(PROMPTS))
    for index, states in enumerate(embeds + negative[:1]):
        out[f"embeds.{index}"] = states
    print("tokens", [len(states) for states in embeds + negative])
    negative = {"negative_prompt": [NEGATIVE] * len(PROMPTS)}
    out["guided.steps"], out["guided.pictures"] = draw(pipeline, noise, guidance_scale=GUIDANCE, **negative)
    out["plain.steps"], _ = draw(pipeline, noise, guidance_scale=0.0)

    models = {k: v for k, v in made.items() if isinstance(v, torch.nn.Module)}
    configs = {
        k: (v.config.to_dict() if k.startswith("text") else dict(v.config)) for k, v in models.items()
    }
    configs["scheduler"] = json.loads(made["scheduler"].to_json_string())
    keys = {k: {n: list(t.shape) for n, t in v.state_dict().items()} for k, v in models.items()}
    request = {
        "prompts": PROMPTS,
        "negative_prompt": NEGATIVE,
        "guidance_scale": GUIDANCE,
        "steps": STEPS,
        "model_max_length": TOKENS,
    }
    metadata = {
        "configs": json.dumps(configs),
        "keys": json.dumps(keys, separators=(",", ":")),
        "request": json.dumps(request),
        "index": json.dumps({**pipeline.config, "_class_name": type(pipeline).__name__}, default=str),
    }
    path = FIXTURES / "pipeline-z-image.safetensors"
    save_file({k: v.detach().contiguous() for k, v in out.items()}, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
