"""Adapter files on a transformer by ComfyUI's own code. The variable COMFYUI names a folder with it."""

import os
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file

PREFIX = "diffusion_model."


class Weights(torch.nn.Module):
    """A checkpoint by the keys of ComfyUI."""

    def __init__(self, state: dict):
        super().__init__()
        self.state = {PREFIX + key: tensor for key, tensor in state.items()}
        self.model_config = types.SimpleNamespace(unet_config={})

    def state_dict(self):
        return self.state


def merged(state: dict, path: Path, thirds: dict[str, tuple[str, int]]) -> dict:
    """The checkpoint `state` of the original names with a file, by `load_lora` and `calculate_weight`.

    `thirds` has the modules of diffusers' names: the original module, and which third of its rows they are,
    or -1 for all. Releases with Z-Image read them after four prefixes.
    """
    sys.path.insert(0, os.environ["COMFYUI"])
    from comfy.cli_args import args

    args.cpu = True
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(Weights(state), {})
    for name, (original, third) in thirds.items():
        key = f"{PREFIX}{original}.weight"
        rows = state[f"{original}.weight"].shape[0] // 3
        to = key if third < 0 else (key, (0, third * rows, rows))
        for known in [f"diffusion_model.{name}", f"transformer.{name}", f"lycoris_{name.replace('.', '_')}", name]:
            keys[known] = to
    tensors = load_file(path)
    out = {key: tensor.clone() for key, tensor in state.items()}
    known = {f"{name}." for name in keys}
    unread = [key for key in tensors if not any(key.startswith(name) for name in known)]
    assert not unread, unread
    for to, adapter in comfy.lora.load_lora(tensors, keys).items():
        key, offset = (to, None) if isinstance(to, str) else to
        weight = out[key.removeprefix(PREFIX)]
        patch = [(1.0, adapter, 1.0, offset, None)]
        found = comfy.lora.calculate_weight(patch, weight.clone(), key, weight.dtype)
        weight.copy_(found)
    return out
