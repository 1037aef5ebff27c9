"""What the scripts that write adapter files of transformers share.

A `Family` has a tiny transformer with weights of a formula, its checkpoint in the names of its authors, and
the folder of its fixtures. Its methods write files of PEFT and LyCORIS, with what each tool makes of them.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from lycoris import LycorisNetwork, create_lycoris
from models import value
from peft import get_peft_model
from peft.tuners.lokr.layer import factorization
from safetensors.torch import load_file, save_file


class Original(torch.nn.Module):
    """The linear layers of the original code, as a tree of modules."""

    def __init__(self, state: dict, to_diffusers: Callable[[dict], dict]):
        super().__init__()
        self.to_diffusers = to_diffusers
        for key, weight in state.items():
            *parents, last = key.split(".")
            if weight.dim() != 2 or last != "weight":
                continue
            at = self
            for name in parents[:-1]:
                if name not in dict(at.named_children()):
                    at.add_module(name, torch.nn.Module())
                at = at.get_submodule(name)
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            layer.weight.data = weight.clone()
            at.add_module(parents[-1], layer)

    def forward(self, x):
        return x

    def diffusers_state(self, rest: dict) -> dict:
        return self.to_diffusers(rest | self.state_dict())


def fused_by_diffusers(pipeline_class, model: torch.nn.Module, path: Path) -> dict:
    """The weights of the transformer after load_lora_weights and fuse_lora."""
    pipe = pipeline_class(FlowMatchEulerDiscreteScheduler(), None, None, None, model)
    pipe.load_lora_weights(path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe.transformer.state_dict()


@dataclass
class Family:
    fixtures: Path
    transformer: Callable[[], torch.nn.Module]
    # From diffusers' names to the original ones, and back.
    to_original: Callable[[dict], dict]
    to_diffusers: Callable[[dict], dict]

    def original(self) -> tuple[Original, dict]:
        """The linear layers of the original code, and the rest of the checkpoint."""
        state = self.to_original(self.transformer().state_dict())
        original = Original(state, self.to_diffusers)
        return original, {key: tensor for key, tensor in state.items() if key not in original.state_dict()}

    def expect(self, name: str, merged: dict) -> None:
        """Writes the change of each weight times a probe vector."""
        base = self.transformer().state_dict()
        assert merged.keys() == base.keys(), merged.keys() ^ base.keys()
        changes = {}
        for key, weight in base.items():
            change = merged[key].double() - weight
            if change.abs().max() > 1e-9:
                changes[key.removesuffix(".weight")] = probe(change).float().contiguous()
        assert changes, name
        path = self.fixtures / f"{name}.expected.safetensors"
        save_file(changes, path)
        print(f"{name}: {len(changes)} weights change, {path.stat().st_size} bytes")

    def save(self, name: str, tensors: dict, metadata: dict | None = None) -> Path:
        path = self.fixtures / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
        return path

    def peft_directory(self, name: str, config, of_diffusers: bool) -> None:
        """A directory of PEFT, on diffusers' layers or on the original ones."""
        base, rest = (self.transformer(), {}) if of_diffusers else self.original()
        # PEFT decomposes in f32 only.
        pissa = getattr(config, "init_lora_weights", None) == "pissa"
        model = get_peft_model(base.float() if pissa else base, config)
        if pissa:
            for key, p in model.named_parameters():
                if "lora_" in key:
                    p.data = (p.data.float() + 0.05 * value(f"pissa.{key}", *p.shape)).to(p.dtype)
        else:
            fill_adapter(model, name)
        folder = self.fixtures / "peft" / name
        with tempfile.TemporaryDirectory() as temporary:
            model.save_pretrained(temporary)
            folder.mkdir(parents=True)
            tensors = load_file(Path(temporary) / "adapter_model.safetensors")
            tensors = {key: tensor.float().contiguous() for key, tensor in tensors.items()}
            save_file(tensors, folder / "adapter_model.safetensors")
            fields = json.loads((Path(temporary) / "adapter_config.json").read_text())
            fields |= {"base_model_name_or_path": None, "target_modules": sorted(fields["target_modules"])}
            (folder / "adapter_config.json").write_text(json.dumps(fields, indent=1) + "\n")
        merged = model.merge_and_unload().double()
        self.expect(f"peft/{name}", merged.state_dict() if of_diffusers else merged.diffusers_state(rest))

    def lycoris_file(self, name: str, algo: str, options: dict, layers: list[str]) -> None:
        """A file of LyCORIS on the original layers, which ComfyUI reads in kohya's names too."""
        base, rest = self.original()
        base = base.float()
        LycorisNetwork.apply_preset({"target_name": layers, "target_module": []})
        options = {"linear_dim": 2, "linear_alpha": 3} | options
        network = create_lycoris(base, 1.0, algo=algo, **options)
        network.apply_to()
        fill_lycoris(network, name)
        tensors = {key: tensor.detach().float() for key, tensor in network.state_dict().items()}
        self.save(f"lycoris-{name}", tensors)
        network.restore()
        network.merge_to(1.0)
        merged = base.double().diffusers_state(rest)
        self.expect(f"lycoris-{name}", {key: weight.detach() for key, weight in merged.items()})


def probe(weight: torch.Tensor) -> torch.Tensor:
    """Each row times a vector of the formula: any entry in a wrong place changes it."""
    return weight.double() @ value("probe", weight.shape[-1]).double()


def check_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def small(name: str, rows: int, columns: int, scale: float) -> torch.Tensor:
    return (value(name, rows, columns) * scale).contiguous()


def lora(name: str, shape, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return small(f"{name}.a", rank, shape[1], (shape[1] * rank) ** -0.5), small(f"{name}.b", shape[0], rank, 0.3)


def lokr(file: str, name, shapes: dict, factor: int) -> dict:
    """A LoKr by LyCORIS' rule of sizes, with every second large matrix as a product."""
    tensors = {}
    for index, (layer, (rows, columns)) in enumerate(shapes.items()):
        (small_rows, large_rows), (small_columns, large_columns) = factorization(rows, factor), factorization(columns, factor)
        key, of = name(layer), f"{file}.{layer}"
        tensors[f"{key}.lokr_w1"] = small(f"{of}.w1", small_rows, small_columns, 0.3)
        if index % 2:
            tensors[f"{key}.lokr_w2"] = small(f"{of}.w2", large_rows, large_columns, 0.3)
        else:
            tensors[f"{key}.lokr_w2_a"] = small(f"{of}.w2a", large_rows, 2, 0.3)
            tensors[f"{key}.lokr_w2_b"] = small(f"{of}.w2b", 2, large_columns, 0.3)
        tensors[f"{key}.alpha"] = torch.tensor(2.5)
    return tensors


def fill_adapter(model, name: str) -> None:
    """Values that are no identity."""
    for key, p in model.named_parameters():
        if not p.requires_grad and "lora_" not in key:
            continue
        if key.endswith("lora_magnitude_vector.default.weight") or "magnitude_vector" in key or "boft_s" in key:
            p.data = p.data * (1 + 0.1 * value(f"{name}.{key}", *p.shape).to(p.dtype))
        elif "lora_A" in key or "hada" in key or "lokr" in key or "lora_B" in key:
            p.data = (value(f"{name}.{key}", *p.shape) * 0.3).to(p.dtype)
        else:
            p.data = (value(f"{name}.{key}", *p.shape) * 0.1).to(p.dtype)


def fill_lycoris(network, name: str) -> None:
    for key, p in network.named_parameters():
        if key.endswith("dora_scale") or key.endswith("rescale"):
            p.data = p.data * (1 + 0.1 * value(f"{name}.{key}", *p.shape))
        elif key.endswith("scalar"):
            continue
        else:
            scale = 0.05 if "oft_blocks" in key or key.endswith("weight") and "lora" not in key else 0.3
            p.data = value(f"{name}.{key}", *p.shape) * scale


def report(name: str, found: dict, expected: dict, base: dict, skip=()) -> None:
    """The largest difference, relative to the change."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    keys = [key for key in expected if key not in skip]
    # torch's maximum is NaN if a number is.
    largest = lambda a, b: torch.stack([(a[key] - b[key]).abs().max() for key in keys]).max().item()
    change, error = largest(expected, base), largest(found, expected)
    print(f"{name}: {error / change:.1e} of the change, {change:.2f}")
    assert error / change < 1e-4, name
