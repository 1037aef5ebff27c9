"""Checks single files written by `soda convert` with diffusers' converters.

For each family: diffusers saves a tiny pipeline (pipelines.py's), `soda convert` turns the directory
into one file in the original names, and diffusers' converters must turn that into the weights that
it began with. Then the names and shapes are written to
crates/soda-models/tests/fixtures/single-file.json, which tests/single_file.rs compares with.

    pip install torch diffusers transformers safetensors
    cargo build && python docs/parity/single_file.py target/debug/soda
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))
from models import FIXTURES
from pipelines import RUNS, parts


def text_weights(name: str, made: dict, file: dict) -> list[tuple[torch.nn.Module, dict]]:
    """Each text encoder with what diffusers reads from the file for it."""
    one = made["text_encoder"]
    if name == "sd15":
        return [(one, convert_ldm_clip_checkpoint(dict(file)))]
    if name == "sd21":
        return [(one, convert_open_clip_checkpoint(one, dict(file), prefix="cond_stage_model.model."))]
    two = made["text_encoder_2"]
    prefix = "conditioner.embedders.0.transformer."
    return [
        (one, convert_ldm_clip_checkpoint(dict(file), remove_prefix=prefix)),
        (two, convert_open_clip_checkpoint(two, dict(file), prefix="conditioner.embedders.1.model.")),
    ]


def main(soda: str) -> None:
    shapes = {}
    for name in RUNS:
        made = parts(name)
        kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
        safety = {} if name == "sdxl" else {"safety_checker": None, "feature_extractor": None}
        with tempfile.TemporaryDirectory() as folder:
            model, single = Path(folder) / "model", Path(folder) / "model.safetensors"
            kind(**made, **safety).save_pretrained(model)
            subprocess.run([soda, "convert", "--base", model, "--out", single], check=True)
            file = load_file(single)
        config = dict(made["unet"].config)
        for module, found in [
            (made["unet"], convert_ldm_unet_checkpoint(dict(file), config)),
            (made["vae"], convert_ldm_vae_checkpoint(dict(file), dict(made["vae"].config))),
            *text_weights(name, made, file),
        ]:
            for key, expected in module.state_dict().items():
                old = "text_model." + key
                value = found[key] if key in found else found[old]
                assert torch.equal(value.reshape(expected.shape), expected), (name, key)
        shapes[name] = {key: list(value.shape) for key, value in sorted(file.items())}
        print(f"{name}: {len(file)} tensors are diffusers'")
    text = json.dumps(shapes, separators=(",", ":"))
    (FIXTURES / "single-file.json").write_text(text + "\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1])
