"""Makes the fixtures of the tests: adapters that `soda train` wrote, and the weights of `soda merge`.

    python crates/soda-python/tests/make_fixtures.py --soda target/debug/soda [NAME ...]

Each fixture is `NAME.safetensors`, an adapter for the bundled model, and `NAME.expected.safetensors` with some
outputs of the merged weights at the strengths 0.3 and 1, as `<strength>/<path of the weight>`.

An adapter with a mask over timesteps has no merged weight. `NAME.predictions.safetensors` holds predictions of the
network instead, of this package on diffusers (which has to be installed). A test of `soda-pipeline` holds the binary
to them.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = Path(__file__).resolve().parent / "fixtures"
TOYBOX = ROOT / "examples/toybox/base"
TOYFLUX = ROOT / "examples/toyflux/base"

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
UNET = [QUERY, "conv_in.weight", "conv_out.weight"]
TEXT = "text_model.encoder.layers.0.self_attn.q_proj.weight"
FLUX = "single_transformer_blocks.0.attn.to_out.weight"

SMALL = ["method.rotation.rank=4", "method.spectrum.rank=3", "method.calibration={draws=4}"]
QR_LOW_RANK = "method.spectrum.shift={form='low-rank', rank=2, seed=3}"

# Name, method, settings.
VARIANTS = [
    ("kronecker-svd", "soda", []),
    ("kronecker-both", "soda", ["method.rotation.side=both", "method.rotation.parametrization=cayley"]),
    ("kronecker-free", "kronecker", ["method.rotation.side=output", "method.rotation.parametrization=unconstrained"]),
    ("kronecker-qr", "soda-qr", []),
    ("kronecker-qr-low-rank", "soda-qr", [QR_LOW_RANK]),
    ("kronecker-svd-low-rank", "soda", [QR_LOW_RANK]),
    ("paper", "soda-paper", []),
    ("permuted", "soda-permuted", ["method.rotation.seed=5"]),
    ("subspace", "soda-subspace", SMALL),
    ("subspace-both", "soda-subspace", [*SMALL, "method.rotation.side=both"]),
    ("subspace-ranks", "soda-subspace", ["method.spectrum.rank=2", "method.calibration={draws=4}", "method.rotation.numbers=40"]),
    ("svdiff", "svdiff", []),
    ("gsoft", "gsoft", ["method.rotation.block_size=8"]),
    ("psoft", "psoft", ["method.rotation.rank=4"]),
    ("hra", "hra", ["method.rotation.rank=4"]),
    ("lora", "lora", ["method.rank=2", "method.alpha=3", "method.rank_pattern={'^conv'=3}", "method.alpha_pattern={'conv_out'=5}"]),
    ("rslora", "lora", ["method.rank=4", "method.rank_stabilized=true", "method.alpha=2"]),
    ("pissa", "pissa", ["method.rank=3", "method.alpha=6"]),
    ("dora", "dora", ["method.rank=2"]),
    ("loha", "loha", ["method.rank=2", "method.alpha=3"]),
    ("lokr", "lokr", ["method.rank=2", "method.alpha=3"]),
    ("lokr-both", "lokr", ["method.rank=1", "method.factor=8", "method.decompose_both=true"]),
    ("lokr-sizes", "lokr", ["method.rank=2", "method.sizes={'%s'=[8, 4]}" % QUERY]),
    ("oft", "oft", ["method.block_size=8"]),
    ("oft-coft", "oft", ["method.block_size=8", "method.cayley={form='exact'}", "method.block_share=true", "method.constraint=0.3", "method.side=both"]),
    ("boft", "boft", ["method.block_size=4", "method.levels=3"]),
    ("full", "full", []),
    ("text", "kronecker", ["method.rotation.side=both"]),
    ("flux", "soda-subspace", SMALL),
    ("t-lora", "t-lora", ["method.rank=6", "method.alpha=9", "method.init='pissa'"]),
    ("t-soda", "soda-subspace", [*SMALL, "method.rotation.side=both", "method.timestep_mask={min_rank=2, alpha=1.5}"]),
]

# The rows of a picture, of a text, and of the timesteps themselves.
MASKED = [QUERY, "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight", "time_embedding.linear_1.weight"]


def run(command):
    print("$", " ".join(map(str, command)), flush=True)
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def train(soda, name, method, settings, folder):
    base = TOYFLUX if name == "flux" else TOYBOX
    # One picture: the numbers need not be good ones.
    data = folder / "data"
    data.mkdir(exist_ok=True)
    shutil.copy(ROOT / "examples/toybox/subjects/bat_rocket/00.png", data)
    targets = {"flux": [FLUX], "text": [QUERY], "t-lora": MASKED, "t-soda": MASKED}.get(name, UNET)
    command = [soda, "train", "--base", base.relative_to(ROOT), "--data", data]
    command += ["--steps", 3, "--batch-size", 1, "--method", method, "--runs", folder, "--name", name]
    command += ["--rotation-lr", 0.1, "--spectrum-lr", 0.1, "--prompt", "a photo of a <rocket>" if name == "text" else "a rocket"]
    for target in targets:
        command += ["--target", "^" + target.replace(".", r"\.") + "$"]
    settings = [*settings, "samples.prompts=[]", "validation.every=0"]
    if name == "text":
        command += ["--token", "<rocket>=rocket red", "--train-text-encoder"]
        pattern = "^" + TEXT.replace(".", r"\\.") + "$"
        settings += ['text_encoder={targets=["%s"]}' % pattern]
    for setting in settings:
        command += ["--set", setting]
    run(command)
    return base, folder / name / "adapter.safetensors"


def trimmed(weight):
    """Some of the outputs, so that a fixture stays small."""
    step = 1 if weight.shape[0] < 16 else 4 if weight.size < 40_000 else 16
    return weight[::step].copy()


def predictions(adapter):
    """The network's predictions at two timesteps of one batch, and its inputs."""
    import torch
    from diffusers import UNet2DConditionModel

    import soda_adapters

    torch.manual_seed(0)
    inputs = {"sample": torch.randn(2, 4, 8, 8), "timesteps": torch.tensor([900.0, 300.0]), "states": torch.randn(2, 5, 160)}
    unet = UNet2DConditionModel.from_pretrained(TOYBOX, subfolder="unet").float()
    found = {key: value.numpy() for key, value in inputs.items()}
    for strength in (0, 0.5, 1):
        with soda_adapters.load(unet, adapter, strength), torch.no_grad():
            found[f"prediction.{strength}"] = unet(*inputs.values()).sample.numpy()
    return found


def make(soda, name, method, settings, folder):
    base, adapter = train(soda, name, method, settings, folder)
    expected, kind = {}, "expected"
    if name.startswith("t-"):
        expected, kind = predictions(adapter), "predictions"
    for strength in (0.3, 1) if kind == "expected" else ():
        merged = folder / f"{name}-{strength}"
        run([soda, "merge", "--base", base, "--adapter", adapter, "--strength", strength, "--out", merged])
        weights = [("unet", path) for path in UNET]
        if name == "flux":
            weights = [("transformer", FLUX)]
        elif name == "text":
            weights = [("unet", QUERY), ("text_encoder", TEXT)]
        for component, path in weights:
            file = next((merged / component).glob("*.safetensors"))
            with safe_open(file, "np") as tensors:
                key = path if path in tensors.keys() else path.removeprefix("text_model.")
                expected[f"{strength}/{component}.{path}"] = trimmed(tensors.get_tensor(key))
    with safe_open(adapter, "np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata()
    # The settings of the run hold paths of the machine.
    metadata["training"] = json.dumps({"steps": 3})
    save_file(tensors, FIXTURES / f"{name}.safetensors", metadata)
    save_file(expected, FIXTURES / f"{name}.{kind}.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--soda", type=Path, default=ROOT / "target/debug/soda")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    FIXTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, method, settings in VARIANTS:
            if not options.names or name in options.names:
                make(options.soda, name, method, settings, Path(folder))


if __name__ == "__main__":
    main()
