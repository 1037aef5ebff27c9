"""Training in PyTorch. `SODA` names the binary, whose merged weights are then compared:

    SODA=target/debug/soda python -m unittest discover -s crates/soda-python/tests -p 'test_training.py'
"""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
from safetensors import safe_open

try:
    import torch
except ImportError as error:
    raise unittest.SkipTest(f"torch is not installed: {error}") from None

import soda_adapters
import test_formulas as reference
from soda_adapters import AdapterError
from soda_adapters.optimizer import polar
from soda_adapters.training import Calibration, SodaAdam, attach, resume

SODA = os.environ.get("SODA")
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
PATHS = [QUERY, "conv_in.weight", "conv_out.weight"]
TARGETS = ["^" + path.replace(".", r"\.") + "$" for path in PATHS]

KRONECKER = {"name": "soda", "rotation": {}, "spectrum": {}}
METHODS = {
    "kronecker": KRONECKER,
    "both sides, qr": {"name": "soda", "rotation": {"side": "both"}, "spectrum": {"basis": "qr"}},
    "cayley": {"name": "soda", "rotation": {"parametrization": "cayley"}, "spectrum": None},
    "permuted": {"name": "soda", "rotation": {"structure": "kronecker-permuted", "seed": 3}, "spectrum": {}},
    "gsoft": {
        "name": "soda",
        "rotation": {"structure": "group-and-shuffle", "block_size": 4},
        "spectrum": None,
        "output_scale": True,
    },
    "subspace": {
        "name": "soda",
        "rotation": {"structure": "subspace", "subspace": "gradient", "rank": 3, "side": "both"},
        "spectrum": {"rank": 2},
    },
    "psoft": {
        "name": "soda",
        "rotation": {
            "structure": "subspace",
            "subspace": "principal",
            "rank": 3,
            "scales": True,
            "parametrization": "cayley",
        },
        "spectrum": None,
    },
    "svdiff": {"name": "soda", "rotation": None, "spectrum": {}},
}


class Net(torch.nn.Module):
    """The three weights of the fixtures, at their paths in the bundled UNet."""

    def __init__(self):
        super().__init__()
        for path in PATHS:
            weight = torch.from_numpy(reference.base_weight("unet", path))
            *names, leaf = path.removesuffix(".weight").split(".")
            module = self
            for name in names:
                if name not in module._modules:
                    module.add_module(name, torch.nn.Module())
                module = module._modules[name]
            if weight.ndim == 4:
                layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False)
            else:
                layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = torch.nn.Parameter(weight.clone())
            module.add_module(leaf, layer)

    def forward(self, x):
        x = self.conv_in(x)
        query = self.get_submodule(QUERY.removesuffix(".weight"))
        return self.conv_out(torch.tanh(query(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


def train(net, adapters, steps, rate=1e-2):
    """The loss before and after some steps towards a rotated output."""
    torch.manual_seed(0)
    x, target = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    optimizer = SodaAdam(adapters.parameter_groups(rate, rate))
    losses = []
    for _ in range(steps):
        loss = (net(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def directions(net):
    torch.manual_seed(1)
    with Calibration(net, TARGETS) as calibration:
        (net(torch.randn(4, 4, 6, 6)) - torch.randn(4, 4, 6, 6)).square().mean().backward()
    return calibration.directions(3)


def adapters_for(net, method):
    return attach(net, method, TARGETS, directions=directions(net) if "gradient" in str(method) else None)


def orthogonality(adapters):
    errors = []
    for weight in adapters.weights.values():
        for name, tensor in weight.tensors().items():
            if ".factors." in name or name.endswith(".blocks"):
                q = tensor.detach().double()
                errors.append(float((q.mT @ q - torch.eye(q.shape[-1])).abs().max()))
    return max(errors)


class Training(unittest.TestCase):
    def test_fresh_adapters_change_no_bit_and_train(self):
        for name, method in METHODS.items():
            with self.subTest(name):
                net = Net()
                x = torch.randn(1, 4, 5, 5)
                with torch.no_grad():
                    before = net(x)
                adapters = adapters_for(net, method)
                with torch.no_grad():
                    self.assertTrue(torch.equal(net(x), before))
                trained = {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
                self.assertEqual(trained, {id(parameter) for parameter in adapters.parameters()})
                first, last = train(net, adapters, 40)
                self.assertTrue(last < 0.99 * first, f"{name}: {first} {last}")
                with adapters.disabled(), torch.no_grad():
                    self.assertTrue(torch.equal(net(x), before))
                adapters.detach()
                with torch.no_grad():
                    self.assertTrue(torch.equal(net(x), before))

    def test_rotations_stay_on_the_manifold(self):
        for name in ("kronecker", "gsoft", "subspace"):
            net = Net()
            adapters = adapters_for(net, METHODS[name])
            train(net, adapters, 1000)
            error = orthogonality(adapters)
            self.assertTrue(error < 2e-6, f"{name}: {error:.1e}")

    def test_large_steps_stay_on_the_manifold(self):
        torch.manual_seed(0)
        q = torch.linalg.qr(torch.randn(50, 12, 12))[0]
        for size in (1e-4, 0.1, 3.0):
            skew = torch.randn(50, 12, 12)
            moved = polar(q + q @ (skew - skew.mT) * size)
            self.assertTrue(float((moved.mT @ moved - torch.eye(12)).abs().max()) < 2e-6)

    def test_the_optimizer_resumes(self):
        def run(stop):
            net = Net()
            adapters = adapters_for(net, KRONECKER)
            optimizer = SodaAdam(adapters.parameter_groups())
            x = torch.linspace(-1, 1, 4 * 25).reshape(1, 4, 5, 5)
            for step in range(6):
                if step == stop:
                    state = optimizer.state_dict()
                    optimizer = SodaAdam(adapters.parameter_groups())
                    optimizer.load_state_dict(state)
                optimizer.zero_grad()
                net(x).square().mean().backward()
                optimizer.step()
            return [parameter.detach().clone() for parameter in adapters.parameters()]

        for one, two in zip(run(None), run(3)):
            self.assertTrue(torch.equal(one, two))

    def test_directions_are_those_of_the_gradient_by_rotations(self):
        net = Net()
        x, target = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
        layer = net.get_submodule(QUERY.removesuffix(".weight"))
        base = layer.weight.detach().clone()
        generator = torch.zeros(64, 64, requires_grad=True)
        # `w ← (I + A - Aᵀ) w` on the matrix `[in, out]`.
        weights = (base.T + (generator - generator.T) @ base.T).T
        loss = (torch.func.functional_call(net, {QUERY: weights}, x) - target).square().mean()
        (skew,) = torch.autograd.grad(loss, generator)
        with Calibration(net, TARGETS) as calibration:
            (net(x) - target).square().mean().backward()
        found = calibration.directions(4)[QUERY]
        wanted = torch.linalg.svd(skew)[0][:, :4]
        torch.testing.assert_close(found @ found.T, wanted @ wanted.T, atol=1e-3, rtol=0)

    def test_files_of_the_binary_are_trained_further(self):
        for name in ("kronecker-svd", "kronecker-both", "paper", "permuted", "subspace", "gsoft", "psoft", "svdiff"):
            with self.subTest(name):
                net = Net()
                adapters = resume(net, reference.FIXTURES / f"{name}.safetensors")
                for key, merged in reference.expected(name).items():
                    strength, _, path = key.partition("/unet.")
                    adapters.set_strength(float(strength))
                    layer = net.get_submodule(path.removesuffix(".weight"))
                    found = reference.trimmed(layer.weight.detach().numpy())
                    error = np.abs(found - merged).max() / np.abs(merged).max()
                    self.assertTrue(error <= 1e-5, f"{name} {key}: {error:.1e}")
                adapters.set_strength(1.0)
                train(net, adapters, 2)

    def test_saved_files_have_the_trained_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, method in METHODS.items():
                with self.subTest(name):
                    net = Net()
                    adapters = adapters_for(net, method)
                    train(net, adapters, 5, 0.05)
                    path = Path(folder) / f"{name}.safetensors"
                    adapters.save(path, base="toybox", trigger=["sks"], training={"steps": 5})
                    weights = {key: net.get_submodule(key.removesuffix(".weight")).weight.detach() for key in PATHS}
                    other = Net()
                    soda_adapters.load(other, path)
                    for key, weight in weights.items():
                        torch.testing.assert_close(other.get_parameter(key), weight, atol=1e-6, rtol=0)
                    if SODA:
                        self.compare_with_binary(Path(folder) / name, path, weights)

    def compare_with_binary(self, out, path, weights):
        command = [SODA, "merge", "--base", "examples/toybox/base", "--adapter", path, "--out", out]
        subprocess.run(list(map(str, command)), check=True, cwd=reference.ROOT, capture_output=True)
        with safe_open(next((out / "unet").glob("*.safetensors")), "pt") as file:
            for key, weight in weights.items():
                merged = file.get_tensor(key)
                error = float((merged - weight).abs().max() / merged.abs().max())
                self.assertTrue(error <= 1e-5, f"{path.name} {key}: {error:.1e}")

    def test_what_cannot_be_trained_is_refused(self):
        for method, sentence in (
            ({"name": "lora"}, "PEFT trains it"),
            ({"name": "soda", "rotation": {"structure": "householder"}, "spectrum": None}, "reflections"),
            ({"name": "soda", "rotation": {"structure": "subspace"}, "spectrum": None}, "directions"),
            ({"name": "soda", "rotation": None, "spectrum": {"select": "gradient", "rank": 2}}, "select"),
            ({"name": "soda", "rotation": None, "spectrum": {"rank": 2}, "timestep_mask": {}}, "needs `soda train`"),
        ):
            with self.assertRaisesRegex(AdapterError, sentence):
                attach(Net(), method, TARGETS)
        with self.assertRaisesRegex(AdapterError, "select no weight"):
            attach(Net(), KRONECKER, ["to_x"])
        net = Net()
        net.conv_in.weight.data += 1
        with self.assertRaisesRegex(AdapterError, "another base"):
            resume(net, reference.FIXTURES / "kronecker-svd.safetensors")
        self.assertFalse(hasattr(net.conv_in, "parametrizations"))


if __name__ == "__main__":
    unittest.main()
