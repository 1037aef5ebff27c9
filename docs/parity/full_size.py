"""One call of a full-size UNet, with the weights of models.py's formula.

Writes crates/soda-models/tests/fixtures/full-{sd15,sdxl}.safetensors, which tests/full_size.rs
compares with. Each layer's weights are made when it is called and dropped after it, so that a network of
10 GB needs a few hundred MB.

    pip install torch diffusers safetensors
    python docs/parity/full_size.py sd15
    python docs/parity/full_size.py sdxl
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent))
from models import FIXTURES, unet_config, value, weight

# The published configs, as far as they differ from diffusers' defaults.
CONFIGS = {
    "sd15": {
        **unet_config([True, True, True, False], attention_head_dim=8, cross_attention_dim=768),
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 64,
    },
    "sdxl": {
        **unet_config(
            [False, True, True],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            transformer_layers_per_block=[1, 2, 10],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 128,
    },
}
# Sides of the latents. SDXL's own 128 would take minutes and show nothing that these do not.
SIDES = {"sd15": 64, "sdxl": 32}


def lazy(model: torch.nn.Module) -> None:
    """Weights on demand: a layer has them while it runs."""
    for path, layer in model.named_modules():
        names = [name for name, _ in layer.named_parameters(recurse=False)]
        if not names:
            continue

        def fill(layer, _, path=path, names=names):
            for name in names:
                old = getattr(layer, name)
                new = weight(f"{path}.{name}", tuple(old.shape))
                setattr(layer, name, torch.nn.Parameter(new, requires_grad=False))

        def drop(layer, *_, names=names):
            for name in names:
                meta = torch.empty_like(getattr(layer, name), device="meta")
                setattr(layer, name, torch.nn.Parameter(meta, requires_grad=False))

        layer.register_forward_pre_hook(fill)
        layer.register_forward_hook(drop)


@torch.no_grad()
def main(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    keys = {key: list(old.shape) for key, old in model.state_dict().items()}
    lazy(model)
    model.eval()
    size = SIDES[name]
    added = {}
    if config.get("addition_embed_type"):
        added["text_embeds"] = value("pooled", 1, 1280)
        added["time_ids"] = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])
    out = model(
        value("sample", 1, 4, size, size),
        torch.tensor([500.0]),
        value("text", 1, 77, config["cross_attention_dim"]),
        added_cond_kwargs=added,
    ).sample
    compact = json.dumps(keys, separators=(",", ":"))
    metadata = {"config": json.dumps(dict(model.config)), "keys": compact}
    path = FIXTURES / f"full-{name}.safetensors"
    # Half of the picture is enough for a difference to show.
    save_file({"out": out[:, :, ::2, ::2].contiguous()}, path, metadata)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M weights, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
