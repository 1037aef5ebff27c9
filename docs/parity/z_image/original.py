"""Keys and values of Z-Image's transformer in a file of the original names.

    pip install numpy safetensors
    pip install --no-deps diffusers==0.42.1
    python docs/parity/z_image/original.py
    python docs/parity/z_image/original.py check target/debug/soda

The first command writes crates/soda-models/tests/fixtures/z-image-original.json, which tests/single_file compares
with: shape and probe of each tensor of the model of pipeline.py. The second has soda write such a file and read
one, and compares both with the weights that it began with.

The way back is diffusers' own. convert_z_image_transformer_checkpoint_to_diffusers is taken out of the installed
package's source, since importing the package needs PyTorch. The function calls torch.chunk alone, for which
numpy.split stands in.
"""

import ast
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

sys.path.append(str(Path(__file__).parents[1]))
from flux2.transformer import uniform, value

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "crates/soda-models/tests/fixtures"
CONVERTER = "convert_z_image_transformer_checkpoint_to_diffusers"


def original_module(module: str) -> tuple[str, int]:
    """The original module of one of diffusers, and which third of its rows it is, or -1 for all."""
    for third, part in enumerate(["to_q", "to_k", "to_v"]):
        if module.endswith(f".attention.{part}"):
            return module.replace(part, "qkv"), third
    for theirs, ours in {
        "attention.to_out.0": "attention.out",
        "attention.norm_q": "attention.q_norm",
        "attention.norm_k": "attention.k_norm",
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1": "final_layer",
    }.items():
        module = module.replace(theirs, ours)
    return module, -1


def original_state(state: dict, concatenate=np.concatenate) -> dict:
    """The checkpoint of the original code, written down anew."""
    out = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        name, third = original_module(module)
        if third < 0:
            out[f"{name}.{kind}".removeprefix(".")] = tensor
        else:
            parts = [state[f"{name.removesuffix('qkv')}to_{part}.{kind}"] for part in "qkv"]
            out[f"{name}.{kind}"] = concatenate(parts)
    return out


def diffusers_state(original: dict) -> dict:
    """What diffusers' converter makes of a checkpoint of the original code."""
    package = Path(importlib.util.find_spec("diffusers").origin).parent
    tree = ast.parse((package / "loaders/single_file_utils.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) == CONVERTER]
    chunk = lambda tensor, parts, dim: np.split(tensor, parts, dim)
    names = {"torch": SimpleNamespace(chunk=chunk)}
    exec(compile(tree, CONVERTER, "exec"), names)
    return names[CONVERTER](dict(original))


def check_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for key, tensor in expected.items():
        assert np.array_equal(found[key], tensor), key


def weight(name: str, shape: list[int]) -> np.ndarray:
    """The weight of the formula in ../models.py."""
    u = uniform(name, math.prod(shape)).reshape(shape)
    if len(shape) >= 2:
        return u * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    return np.float32(0.2) * u + np.float32(name.endswith("weight"))


def fixture() -> dict:
    """The metadata of pipeline.py's fixture."""
    with safe_open(FIXTURES / "pipeline-z-image.safetensors", "numpy") as file:
        return file.metadata()


def write_base(folder: Path) -> None:
    """The model directory of pipeline.py's fixture."""
    metadata = fixture()
    folder.mkdir()
    (folder / "model_index.json").write_text(metadata["index"])
    shutil.copytree(ROOT / "examples/toyflux/base/tokenizer", folder / "tokenizer")
    keys = json.loads(metadata["keys"])
    for part, config in json.loads(metadata["configs"]).items():
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
        if part in keys:
            stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
            tensors = {key: weight(key, shape) for key, shape in keys[part].items()}
            save_file(tensors, folder / part / f"{stem}.safetensors", {"format": "pt"})


def probe(tensor: np.ndarray) -> np.ndarray:
    """Each row times a vector of the formula: any entry in a wrong place changes it."""
    return tensor.astype(np.float64) @ value("probe", tensor.shape[-1]).astype(np.float64)


def main() -> None:
    keys = json.loads(fixture()["keys"])["transformer"]
    state = {key: weight(key, shape) for key, shape in keys.items()}
    original = original_state(state)
    check_same(diffusers_state(original), state)
    out = {}
    for key, tensor in sorted(original.items()):
        rows = probe(tensor) if tensor.ndim == 2 else tensor
        out[key] = {"shape": list(tensor.shape), "probe": float(probe(rows))}
    path = FIXTURES / "z-image-original.json"
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(f"{path.name}: {len(out)} tensors, {path.stat().st_size} bytes")


def check(soda: str) -> None:
    """A single file that soda writes, and one that it reads."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        run = lambda *args: subprocess.run([soda, "convert", *map(str, args)], check=True, stdout=subprocess.DEVNULL)
        base, ours, theirs = root / "base", root / "ours.safetensors", root / "theirs.safetensors"
        write_base(base)
        state = load_file(base / "transformer/diffusion_pytorch_model.safetensors")
        run("--base", base, "--out", ours)
        check_same(diffusers_state(load_file(ours)), state)
        # As in ComfyUI, with the norm that nothing applies.
        original = {**original_state(state), "norm_final.weight": np.ones(24, np.float32)}
        save_file({f"model.diffusion_model.{key}": tensor for key, tensor in original.items()}, theirs)
        run("--base", theirs, "--config", base, "--out", root / "back")
        check_same(load_file(root / "back/transformer/diffusion_pytorch_model.safetensors"), state)
        print("single files: equal in both directions")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2])
    else:
        main()
