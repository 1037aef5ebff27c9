"""SODA as a method of PEFT:

    SODA=target/debug/soda python -m unittest discover -s crates/soda-python/tests -p 'test_peft.py'
"""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from safetensors import safe_open

try:
    import peft
    import torch
except ImportError as error:
    raise unittest.SkipTest(f"torch and peft are not installed: {error}") from None

import soda_adapters
import test_formulas as reference
from soda_adapters import AdapterError
from soda_adapters.peft_plugin import SodaConfig, adapter_file, parameter_groups
from soda_adapters.training import SodaAdam
from test_training import PATHS, Net

SODA = os.environ.get("SODA")
MODULES = ["to_q", "conv_in", "conv_out"]
STIEFEL = {"structure": "kronecker", "side": "both"}
CONFIGS = {
    "cayley": {},
    "stiefel": {"rotation": STIEFEL},
    "psoft": {
        "rotation": {"structure": "subspace", "subspace": "principal", "rank": 3, "parametrization": "cayley"},
        "spectrum": {"rank": 2},
    },
    "gsoft": {"rotation": {"structure": "group-and-shuffle", "block_size": 4}, "spectrum": None, "output_scale": True},
}


def peft_model(**settings):
    return peft.get_peft_model(Net(), SodaConfig(target_modules=MODULES, **settings))


def train(model, optimizer, steps=5):
    torch.manual_seed(0)
    x, target = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()


def output(model):
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 4 * 36).reshape(1, 4, 6, 6))


class Peft(unittest.TestCase):
    def test_models_train_save_and_load(self):
        for name, settings in CONFIGS.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                model = peft_model(**settings)
                base = output(Net())
                self.assertTrue(torch.equal(output(model), base))
                trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
                self.assertTrue(trained and all("soda_weight" in key for key in trained))
                train(model, SodaAdam(parameter_groups(model, 0.05, 0.05)))
                after = output(model)
                self.assertTrue(float((after - base).abs().max()) > 1e-3)
                with model.disable_adapter():
                    self.assertTrue(torch.equal(output(model), base))
                model.save_pretrained(folder)
                again = peft.PeftModel.from_pretrained(Net(), folder)
                torch.testing.assert_close(output(again), after, atol=1e-6, rtol=0)
                self.compare_files(model, Path(folder))

    def compare_files(self, model, folder):
        path = folder / "soda.safetensors"
        soda_adapters.write(adapter_file(model, base="toybox"), path)
        net = Net()
        soda_adapters.load(net, path)
        torch.testing.assert_close(output(net), output(model), atol=1e-5, rtol=0)
        if SODA:
            command = [SODA, "merge", "--base", "examples/toybox/base", "--adapter", path, "--out", folder / "merged"]
            subprocess.run(list(map(str, command)), check=True, cwd=reference.ROOT, capture_output=True)
            with safe_open(next((folder / "merged/unet").glob("*.safetensors")), "pt") as file:
                for key in PATHS:
                    merged = file.get_tensor(key)
                    error = float((net.get_parameter(key) - merged).abs().max() / merged.abs().max())
                    self.assertTrue(error <= 1e-5, f"{key}: {error:.1e}")

    def test_any_optimizer_keeps_cayley_transforms_orthogonal(self):
        model = peft_model()
        train(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05), 30)
        for layer in model.modules():
            for name, made in getattr(layer, "soda_weight", {}).items():
                for key, tensor in made.tensors().items():
                    if ".generators." in key:
                        q = soda_adapters.formulas.algebra.cayley(soda_adapters.formulas.algebra.skew(tensor.double()))
                        error = (q.T @ q - torch.eye(len(q))).abs().max()
                        self.assertTrue(float(error) < 1e-12)

    def test_merging_and_two_adapters(self):
        model = peft_model(rotation=STIEFEL)
        train(model, SodaAdam(parameter_groups(model, 0.05, 0.05)))
        after, base = output(model), output(Net())
        model.merge_adapter()
        torch.testing.assert_close(output(model), after, atol=1e-5, rtol=0)
        model.unmerge_adapter()
        torch.testing.assert_close(output(model), after, atol=0, rtol=0)
        model.add_adapter("second", SodaConfig(target_modules=MODULES))
        model.set_adapter("second")
        self.assertTrue(torch.equal(output(model), base))
        model.set_adapter("default")
        self.assertTrue(torch.equal(output(model), after))
        plain = model.merge_and_unload()
        self.assertIsInstance(plain.conv_in, torch.nn.Conv2d)
        torch.testing.assert_close(output(plain), after, atol=1e-5, rtol=0)

    def test_what_cannot_be_trained_is_refused(self):
        with self.assertRaisesRegex(AdapterError, "gradient"):
            SodaConfig(target_modules=MODULES, rotation={"structure": "subspace"})
        with self.assertRaisesRegex(AdapterError, "SodaConfig.rotation.rnk is unknown"):
            SodaConfig(target_modules=MODULES, rotation={"rnk": 3})
        with self.assertRaisesRegex(ValueError, "bias"):
            SodaConfig(target_modules=MODULES, bias="all")


if __name__ == "__main__":
    unittest.main()
