"""Masks over timesteps in a small model of ComfyUI. `test_comfyui.py` says how to run these tests."""

import logging
import os
import tempfile
import unittest

import numpy as np

import test_comfyui as base

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import soda_adapters
import torch
from soda_adapters.formulas.timestep_mask import active_directions

node = base.node
MASK = {"min_rank": 1, "alpha": 1.0}
CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "num_heads": 4,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "dtype": torch.float32,
}
# The rows of a picture, of a text, and of the timesteps themselves.
PATHS = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "time_embedding.linear_1.weight",
]


def part(shapes, seed):
    """A part with a mask, of rank 4, for weights `[out, in]` of these shapes."""
    generator = np.random.default_rng(seed)
    weights = {}
    for path, (output, width) in shapes.items():
        a, b = (generator.normal(size=size).astype(np.float32) for size in ((width, 4), (4, output)))
        weights[path] = {"a": a, "b": b}
    _, settings = soda_adapters.settings.read_method({"name": "lora", "rank": 4, "timestep_mask": MASK}, "unet")
    targets = ["^" + path.replace(".", r"\.") + "$" for path in shapes]
    return soda_adapters.Part("lora", settings, targets, "", weights=weights)


class Masks(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.model = comfy.model_base.BaseModel(comfy.supported_models.SD15(dict(CONFIG))).eval()
        with torch.no_grad():
            # ComfyUI leaves its weights as the memory was.
            for parameter in self.model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * noise)
        cpu = torch.device("cpu")
        self.patcher = comfy.model_patcher.ModelPatcher(self.model, load_device=cpu, offload_device=cpu)
        self.places = node.unet_places(self.model)
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.x, self.context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)

    def write(self, name, seed):
        weights = self.model.state_dict()
        shapes = {path: tuple(weights[self.places[path].key].shape) for path in PATHS}
        adapter = soda_adapters.AdapterFile({"unet": part(shapes, seed)})
        path = os.path.join(self.folder.name, f"{name}.safetensors")
        soda_adapters.write(adapter, path)
        return path, adapter

    def load(self, patcher, path, strength):
        with self.assertLogs(level=logging.WARNING):
            return node.load(patcher, None, path, strength, 1.0)[0]

    def predict(self, patcher, timesteps):
        """The noise that the model predicts."""
        patcher.patch_model()
        sigma = self.model.model_sampling.sigma(torch.tensor(timesteps))
        with torch.no_grad():
            found = self.model.apply_model(
                self.x, sigma, c_crossattn=self.context, transformer_options={"wrappers": patcher.wrappers}
            )
        patcher.unpatch_model()
        return (self.x - found) / sigma.reshape(-1, 1, 1, 1)

    def wanted(self, adapters, timesteps):
        """The prediction of each sample with the directions of its timestep in the weights."""
        found = []
        weights = {path: self.model.get_parameter(self.places[path].key) for path in PATHS}
        before = {path: weight.detach().clone() for path, weight in weights.items()}
        for index, timestep in enumerate(timesteps):
            (active,) = active_directions(MASK, [timestep], 4)
            with torch.no_grad():
                for path, weight in weights.items():
                    for adapter, strength in adapters:
                        tensors = adapter.parts["unet"].weights[path]
                        weight += torch.from_numpy(tensors["a"][:, :active] @ tensors["b"][:active]).T * strength
                found.append(self.predict(self.patcher, timesteps)[index])
                for path, weight in weights.items():
                    weight.copy_(before[path])
        return torch.stack(found)

    def test_samples_have_the_directions_of_their_timesteps(self):
        path, adapter = self.write("a", 0)
        plain = self.predict(self.patcher, [900.0, 900.0])
        loaded = self.load(self.patcher, path, 0.7)
        for timesteps in ([900.0, 900.0], [400.0, 900.0], [0.0, 999.0]):
            found = self.predict(loaded, timesteps)
            wanted = self.wanted([(adapter, 0.7)], timesteps)
            torch.testing.assert_close(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)
            without = self.predict(self.patcher, timesteps)
            self.assertTrue(float((without - wanted).abs().max() / wanted.abs().max()) > 1e-2)
        self.assertTrue(torch.equal(self.predict(self.patcher, [900.0, 900.0]), plain))

    def test_two_adapters_add_their_changes(self):
        (first, one), (second, two) = self.write("a", 0), self.write("b", 1)
        loaded = self.load(self.load(self.patcher, first, 0.7), second, -0.4)
        timesteps = [600.0, 100.0]
        wanted = self.wanted([(one, 0.7), (two, -0.4)], timesteps)
        torch.testing.assert_close(self.predict(loaded, timesteps), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)
        self.assertEqual(self.patcher.object_patches, {})

    def test_strength_zero_is_the_base(self):
        path, _ = self.write("a", 0)
        found = self.predict(self.load(self.patcher, path, 0.0), [900.0, 100.0])
        self.assertTrue(torch.equal(found, self.predict(self.patcher, [900.0, 100.0])))

    def test_places_take_changes_of_outputs(self):
        output, change = torch.zeros(2, 6), torch.arange(8.0).reshape(2, 4)
        found = node.Place("key", rows=(2, 4)).add(output, change)
        self.assertTrue(torch.equal(found[:, 2:], change) and not found[:, :2].any())
        weight = torch.randn(4, 3)
        x = torch.randn(5, 3)
        swapped = node.Place("key", swapped=True)
        torch.testing.assert_close(swapped.add(torch.zeros(5, 4), x @ swapped.of(weight).T), x @ weight.T)


if __name__ == "__main__":
    unittest.main()
