"""The adapted weights are those of `soda merge`, for every method, with numpy alone.

    python -m unittest discover -s crates/soda-python/tests
"""

import unittest
from pathlib import Path

import numpy as np
from safetensors import safe_open

import soda_adapters
from soda_adapters import targets
from soda_adapters.formulas import adapted, basis_of, formula

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = Path(__file__).resolve().parent / "fixtures"
NAMES = sorted(path.name.removesuffix(".expected.safetensors") for path in FIXTURES.glob("*.expected.safetensors"))
BASES = {
    "unet": "examples/toybox/base/unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "examples/toybox/base/text_encoder/model.safetensors",
    "transformer": "examples/toyflux/base/transformer/diffusion_pytorch_model.safetensors",
}


def base_weight(component, path):
    with safe_open(ROOT / BASES[component], "np") as file:
        return file.get_tensor(path if path in file.keys() else path.removeprefix("text_model.")).astype(np.float32)


def expected(name):
    with safe_open(FIXTURES / f"{name}.expected.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def trimmed(weight):
    """Some of the outputs, so that a fixture stays small."""
    step = 1 if weight.shape[0] < 16 else 4 if weight.size < 40_000 else 16
    return weight[::step]


def formula_of(part, component, path, weight):
    return formula(part.method, part.settings, path, part.weights.get(path, {}), weight.shape)


class Merged(unittest.TestCase):
    """Each test compares with the weights that the binary merged."""

    def check(self, name):
        adapter = soda_adapters.read(FIXTURES / f"{name}.safetensors")
        values = expected(name)
        self.assertTrue(values)
        moved = 0.0
        for key, merged in values.items():
            strength, _, inside = key.partition("/")
            component, _, path = inside.partition(".")
            weight = base_weight(component, path)
            part = adapter.parts[component]
            made = formula_of(part, component, path, weight)
            found = adapted(made, weight, float(strength), basis_of(made, weight))
            self.assertEqual(found.dtype, np.float32)
            largest = np.abs(merged).max()
            error = np.abs(trimmed(found) - merged).max() / largest
            self.assertTrue(error <= 1e-5, f"{name} {key}: {error:.1e}")
            moved = max(moved, np.abs(merged - trimmed(weight)).max() / largest)
            at_zero = adapted(made, weight, 0.0)
            error = np.abs(at_zero - weight).max() / np.abs(weight).max()
            self.assertTrue(error <= 1e-6, f"{name} {path} at strength 0: {error:.1e}")
        # A comparison of base weights would show nothing.
        self.assertTrue(moved > 1e-3, f"{name} moves no weight: {moved:.1e}")

    def test_the_hash_of_the_base_is_that_of_the_binary(self):
        for name in NAMES:
            adapter = soda_adapters.read(FIXTURES / f"{name}.safetensors")
            for component, part in adapter.parts.items():
                with safe_open(ROOT / BASES[component], "np") as file:
                    prefix = "text_model." if component == "text_encoder" else ""
                    shapes = {prefix + key: file.get_slice(key).get_shape() for key in file.keys()}
                paths = targets.select(part.targets, shapes)
                pairs = ((path, base_weight(component, path)) for path in paths)
                found = targets.base_hash(pairs, part.base_hash)
                self.assertEqual(found, part.base_hash, f"{name} {component}")

    def test_both_hashes_of_a_base_are_those_of_the_binary(self):
        # The same numbers are in crates/soda-adapters/src/fingerprint.rs.
        weight = (np.arange(6, dtype="<f4") / 4).reshape(2, 3)
        for expected in (
            "2-8b5d469680eb21cb34356e81b5827805d9531791a6b62f765cf787cc005b66c4",
            "c0b4aecf4b6381afcd7009d8964e926c6f9f74a4c05f21f591fbfe5218d33fa4",
        ):
            self.assertEqual(targets.base_hash([("weight", weight)], expected), expected)
        # More words than are added at once, and one word changed.
        many = np.arange(targets._PART + 7, dtype="<f4")
        other = many.copy()
        other[-1] = 0
        self.assertNotEqual(targets.checksum(many), targets.checksum(other))

    def test_all_methods_have_a_fixture(self):
        methods = set()
        for name in NAMES:
            parts = soda_adapters.read(FIXTURES / f"{name}.safetensors").parts
            methods |= {part.method for part in parts.values()}
        self.assertEqual(methods, set(soda_adapters.settings.METHODS))


def _add(name):
    setattr(Merged, f"test_{name.replace('-', '_')}", lambda self: self.check(name))


for _name in NAMES:
    _add(_name)

if __name__ == "__main__":
    unittest.main()
