"""Reference vectors of the adapter methods from PEFT, and the proof that files written here load there.

    python docs/reference/adapters.py make
        writes crates/soda-adapters/tests/fixtures: a small network, its inputs, and for every method the
        adapter as PEFT saves it, the adapted output, the merged weights, gradients, half strength.

    python docs/reference/adapters.py check BASE MERGED EXPORTS
        BASE: a diffusers directory. MERGED: the same with an adapter folded in, from `soda merge`.
        EXPORTS: a folder with any of kohya.safetensors, diffusers.safetensors, diff.safetensors, peft/ from
        `soda export`. Loads each by its own tool and compares the UNet's weights and output with MERGED's.

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
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    load = lambda folder: UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    plain, want = load(base), load(merged)
    size, channels = plain.config.sample_size, plain.config.in_channels
    x = (torch.randn(2, channels, size, size), torch.tensor([3, 800]),
         torch.randn(2, 77, plain.config.cross_attention_dim))
    run = lambda unet: unet(*x).sample.detach()
    original, expected = run(plain), run(want)
    moved = (expected - original).norm()
    print(f"the adapter moves the output by {moved / original.norm():.3f} of its norm")

    def say(name, got):
        print(f"{name:12} |output - merged's| / |merged's - base's| = {(got - expected).norm() / moved:.2e}")

    exports = Path(exports)
    for name in ["kohya", "diffusers"]:
        file = exports / f"{name}.safetensors"
        if file.exists():
            pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
            pipe.load_lora_weights(str(file.parent), weight_name=file.name)
            say(name, run(pipe.unet.eval()))
    if (exports / "peft").exists():
        # Merged: PEFT's OFT folds overlapping patches of a convolution when it is applied unmerged.
        model = PeftModel.from_pretrained(load(base), str(exports / "peft"))
        say("peft", run(model.merge_and_unload().eval()))
    diff = exports / "diff.safetensors"
    if diff.exists():
        unet, deltas = load(base), load_file(diff)
        for name, module in unet.named_modules():
            delta = deltas.pop("lora_unet_" + name.replace(".", "_") + ".diff", None)
            if delta is not None:
                module.weight.data += delta
        assert not deltas, list(deltas)
        say("diff", run(unet))


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
