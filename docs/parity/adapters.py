"""Reference vectors of the adapter methods from PEFT, and the proof that files written here load there.

    python docs/parity/adapters.py make
        writes crates/soda-adapters/tests/fixtures: a small network, its inputs, and for every method the
        adapter as PEFT saves it, the adapted output, the merged weights, gradients, half strength.

    python docs/parity/adapters.py check BASE MERGED EXPORTS
        BASE: a diffusers directory. MERGED: the same with an adapter folded in, from `soda merge`.
        EXPORTS: a folder with any of kohya.safetensors, diffusers.safetensors, diff.safetensors, peft/ from
        `soda export`. Loads each by its own tool and compares the outputs of the UNet and the text encoders
        with MERGED's.

Needs torch, diffusers 0.42, peft 0.21, safetensors.
"""

import shutil
import sys
from pathlib import Path

import torch
from peft import (BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model)
from safetensors.torch import load_file, save_file
from torch import nn

FIXTURES = Path(__file__).parents[2] / "crates/soda-adapters/tests/fixtures"


class Net(nn.Module):
    """The convolution sees one patch, where PEFT's OFT is the same applied and merged."""

    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(12, 20)
        self.to_k = nn.Linear(30, 20)
        self.conv = nn.Conv2d(4, 6, 3)

    def forward(self, q, k, image):
        return torch.cat([self.to_q(q) * self.to_k(k), self.conv(image).flatten(1)], 1)


TARGETS = ["to_q", "to_k", "conv"]
CASES = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, bias="none"),
    "rslora": LoraConfig(r=4, lora_alpha=8, use_rslora=True, rank_pattern={"to_k": 2},
                         alpha_pattern={"conv": 3}, target_modules=TARGETS),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=TARGETS),
    "oft": OFTConfig(oft_block_size=4, target_modules=TARGETS),
    "oft-exact": OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=TARGETS),
    "oft-shared": OFTConfig(oft_block_size=5, block_share=True, num_cayley_neumann_terms=3,
                            target_modules=TARGETS),
    "coft": OFTConfig(oft_block_size=4, coft=True, eps=0.3, target_modules=TARGETS),
    "boft": BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=1, target_modules=TARGETS),
    "loha": LoHaConfig(r=2, alpha=3, target_modules=TARGETS),
    "lokr": LoKrConfig(r=2, alpha=2, target_modules=TARGETS),  # other alphas scale whole matrices in PEFT, not in LyCORIS
}
SCALED = {"lora", "rslora"}  # what PEFT can turn down and still reach the base


def make():
    torch.manual_seed(0)
    base = Net()
    state = {f"base.{k}": v.clone() for k, v in base.state_dict().items()}
    inputs = [torch.randn(7, 12), torch.randn(7, 30), torch.randn(7, 4, 3, 3)]
    toward = torch.randn(7, 26)
    out = dict(state, **{"q": inputs[0], "k": inputs[1], "image": inputs[2], "toward": toward})
    for name, config in CASES.items():
        net = Net()
        net.load_state_dict(base.state_dict())
        model = get_peft_model(net, config)
        trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for p in trained.values():
                p.add_(0.2 * torch.randn_like(p))
        y = model(*inputs)
        out[f"{name}.output"] = y.detach()
        (y * toward).sum().backward()
        for k, p in trained.items():
            k = k.replace(".default", "").removeprefix("base_model.model.")
            out[f"{name}.gradient.{k}"] = p.grad.clone()
            out[f"{name}.parameter.{k}"] = p.detach().clone()
        if name in SCALED:
            for module in model.modules():
                if hasattr(module, "scale_layer"):
                    module.scale_layer(0.5)
            out[f"{name}.half"] = model(*inputs).detach()
            for module in model.modules():
                if hasattr(module, "unscale_layer"):
                    module.unscale_layer()
        if name == "oft-exact":
            out[f"{name}.half"] = half_rotation(base, model, inputs)
        folder = FIXTURES / "peft" / name
        shutil.rmtree(folder, ignore_errors=True)
        if name in {"lora", "rslora", "dora", "oft", "oft-exact", "oft-shared", "coft"}:
            model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)
        merged = model.merge_and_unload()
        for target in TARGETS:
            out[f"{name}.merged.{target}.weight"] = merged.get_submodule(target).weight.detach().clone()
    save_file({k: v.contiguous() for k, v in out.items()}, FIXTURES / "reference.safetensors")


def half_rotation(base, model, inputs):
    """R^(1/2) of every exactly orthogonal OFT matrix by its eigenvalues, in f64."""
    half = Net()
    half.load_state_dict(base.state_dict())
    for target in TARGETS:
        layer = model.base_model.model.get_submodule(target)
        r = layer.oft_R["default"].get_weight().detach().double()
        values, vectors = torch.linalg.eig(r)
        root = (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real
        weight = half.get_submodule(target).weight
        flat = weight.data.flatten(1).double()
        weight.data = (flat @ root.T).float().reshape(weight.shape)
    return half(*inputs).detach()


def check(base, merged, exports):
    from diffusers import DiffusionPipeline

    torch.set_grad_enabled(False)
    # The bundled model is stored in half precision.
    load = lambda folder: DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    plain, want = outputs(load(base)), outputs(load(merged))
    moved = {network: (want[network] - plain[network]).norm() for network in want}
    for network, by in moved.items():
        print(f"the adapter moves the output of {network} by {by / plain[network].norm():.3f} of its norm")

    def say(name, pipe):
        got = outputs(pipe)
        errors = {n: (got[n] - want[n]).norm() / moved[n] for n in want if moved[n] > 0}
        print(f"{name:12} |output - merged's| / |merged's - base's|:", *(f"{n} {e:.2e}" for n, e in errors.items()))

    exports = Path(exports)
    for name in ["kohya", "diffusers"]:
        file = exports / f"{name}.safetensors"
        if file.exists():
            pipe = load(base)
            pipe.load_lora_weights(str(file.parent), weight_name=file.name)
            say(name, pipe)
    peft = exports / "peft"
    if peft.exists():
        # Merged: PEFT's OFT folds overlapping patches of a convolution when it is applied unmerged.
        pipe = load(base)
        of_unet = (peft / "adapter_config.json").exists()
        for network in ["unet"] if of_unet else NETWORKS:
            folder = peft if of_unet else peft / network
            if folder.exists():
                model = PeftModel.from_pretrained(getattr(pipe, network), str(folder))
                setattr(pipe, network, model.merge_and_unload())
        say("peft", pipe)
    diff = exports / "diff.safetensors"
    if diff.exists():
        pipe, deltas = load(base), load_file(diff)
        first = "lora_te1_" if hasattr(pipe, "text_encoder_2") else "lora_te_"
        for network, prefix in zip(NETWORKS, ["lora_unet_", first, "lora_te2_"]):
            for name, module in getattr(pipe, network, nn.Module()).named_modules():
                # transformers 5.6 and later have no such level in `CLIPTextModel`.
                for level in ["", "text_model_"]:
                    delta = deltas.pop(prefix + level + name.replace(".", "_") + ".diff", None)
                    if delta is not None:
                        module.weight.data += delta
        assert not deltas, list(deltas)
        say("diff", pipe)


NETWORKS = ["unet", "text_encoder", "text_encoder_2"]


def outputs(pipe):
    """What each network gives, the UNet of random text."""
    torch.manual_seed(0)
    config = pipe.unet.config
    xl = hasattr(pipe, "text_encoder_2")
    ids = pipe.tokenizer("a red mug on a beach", padding="max_length", max_length=77, return_tensors="pt").input_ids
    x = (torch.randn(2, config.in_channels, config.sample_size, config.sample_size), torch.tensor([3, 800]),
         torch.randn(2, 77, config.cross_attention_dim))
    pooled = config.projection_class_embeddings_input_dim
    pooled = torch.randn(2, pooled - 6 * config.addition_time_embed_dim) if xl else None
    added = {"text_embeds": pooled, "time_ids": torch.full((2, 6), 64.0)}
    out = {"unet": pipe.unet(*x, added_cond_kwargs=added if xl else None).sample}
    for name in NETWORKS[1:]:
        if hasattr(pipe, name):
            out[name] = getattr(pipe, name)(ids, output_hidden_states=True).hidden_states[-1]
    return out


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
