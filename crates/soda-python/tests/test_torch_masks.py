"""Masks over timesteps on networks of diffusers. `test_torch.py` says how to run these tests."""

import inspect
import unittest
import warnings

import numpy as np
from safetensors import safe_open

try:
    import diffusers
    import torch
except ImportError as error:
    raise unittest.SkipTest(f"torch and diffusers are not installed: {error}") from None

import soda_adapters
import test_formulas as reference
import test_torch as base
from soda_adapters import AdapterError

QUERY = base.reference_query()
FLUX = "single_transformer_blocks.0.attn.to_out.weight"


class TimestepMasks(unittest.TestCase):
    """The expected predictions are those of the fixtures, which a test of `soda-pipeline` holds the binary to."""

    def setUp(self):
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(base.TOYBOX, subfolder="unet").float()

    def vectors(self, name):
        with safe_open(reference.FIXTURES / f"{name}.predictions.safetensors", "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}

    def predict(self, vectors, timesteps=None):
        timesteps = vectors["timesteps"] if timesteps is None else timesteps
        with torch.no_grad():
            return self.unet(vectors["sample"], timestep=timesteps, encoder_hidden_states=vectors["states"]).sample

    def assert_prediction(self, vectors, strength):
        wanted = vectors[f"prediction.{strength}"]
        torch.testing.assert_close(self.predict(vectors), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)

    def test_samples_have_the_directions_of_their_timesteps(self):
        for name in ("t-lora", "t-soda"):
            vectors = self.vectors(name)
            soda_adapters.load(self.unet, base.path_of(name), 0.5)
            for strength in (0.5, 1, 0):
                soda_adapters.set_strength(self.unet, strength)
                self.assert_prediction(vectors, strength)
            soda_adapters.set_strength(self.unet, 1)
            # One timestep for all samples, as pipelines give it.
            for index in (0, 1):
                alone = self.predict(vectors, vectors["timesteps"][index])[index]
                torch.testing.assert_close(alone, vectors["prediction.1"][index], atol=1e-4, rtol=0)
            soda_adapters.unload(self.unet)
            self.assert_prediction(vectors, 0)
            hooks = [hook for module in self.unet.modules() for hook in (module._forward_hooks, module._forward_pre_hooks)]
            self.assertFalse(any(hooks))

    def test_all_directions_are_the_adapted_weight(self):
        adapter = soda_adapters.read(base.path_of("t-soda"))
        vectors = self.vectors("t-soda")
        with soda_adapters.load(self.unet, adapter):
            masked = self.predict(vectors, 0)
        adapter.parts["unet"].settings["timestep_mask"] = None
        with soda_adapters.load(self.unet, adapter):
            torch.testing.assert_close(self.predict(vectors, 0), masked, atol=2e-5, rtol=0)
            self.assertTrue(float((self.predict(vectors) - vectors["prediction.1"]).abs().max()) > 1e-3)

    def test_other_adapters_of_the_weights_add_their_changes(self):
        vectors = self.vectors("t-lora")
        layer = self.unet.get_submodule(QUERY.removesuffix(".weight"))
        x = torch.randn(2, 5, 64)

        def change():
            self.predict(vectors)
            with torch.no_grad():
                return layer(x) - x @ weight.T

        weight = layer.weight.detach().clone()
        alone = []
        for name in ("t-lora", "full"):
            with soda_adapters.load(self.unet, base.path_of(name)):
                alone.append(change())
        first = soda_adapters.load(self.unet, base.path_of("full"))
        second = soda_adapters.load(self.unet, base.path_of("t-lora"))
        torch.testing.assert_close(change(), sum(alone), atol=1e-5, rtol=0)
        first.unload()
        torch.testing.assert_close(change(), alone[0], atol=1e-5, rtol=0)
        second.unload()
        self.assertFalse(bool(change().any()))

    def test_half_precision_is_near(self):
        vectors = self.vectors("t-lora")
        self.unet.half()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            soda_adapters.load(self.unet, base.path_of("t-lora"))
        halves = {key: value if key == "timesteps" else value.half() for key, value in vectors.items()}
        found, wanted = self.predict(halves).float(), vectors["prediction.1"]
        error = float((found - wanted).abs().max() / wanted.abs().max())
        moved = float((vectors["prediction.0"] - wanted).abs().max() / wanted.abs().max())
        self.assertTrue(error < 5e-3 < 0.1 < moved, (error, moved))

    def test_text_encoders_have_all_directions(self):
        pipe = base.sdxl()
        name, key = "text_encoder", base.PARTS["text_encoder"]
        weight = base.parameter(pipe, f"{name}.{key}").detach().clone()
        generator = np.random.default_rng(0)
        a, b = (generator.normal(size=size).astype(np.float32) for size in ((32, 2), (2, 32)))
        _, settings = soda_adapters.settings.read_method({"name": "lora", "rank": 2, "timestep_mask": {}}, name)
        part = soda_adapters.Part("lora", settings, [f"^{key}$"], "", weights={key: {"a": a, "b": b}})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            soda_adapters.load(pipe, soda_adapters.AdapterFile({name: part}))
        change = torch.from_numpy((a @ b).T)
        torch.testing.assert_close(base.parameter(pipe, f"{name}.{key}"), weight + change, atol=1e-6, rtol=0)

    def test_timesteps_of_transformers_are_those_of_the_scheduler(self):
        from soda_adapters.masks import _ARGUMENTS

        # What diffusers' pipelines make of the timesteps that the binary gives its networks.
        steps = np.arange(1001, dtype=np.float32)
        for name, given in (("Flux2Transformer2DModel", steps / 1000), ("ZImageTransformer2DModel", (1000 - steps) / 1000)):
            network = getattr(diffusers, name)
            argument, convert = _ARGUMENTS[name]
            self.assertIn(argument, inspect.signature(network.forward).parameters)
            np.testing.assert_array_equal(convert(given), steps)

    def test_a_transformer_has_its_directions(self):
        folder = reference.ROOT / "examples/toyflux/base"
        model = diffusers.Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer").float()
        path = FLUX
        layer = model.get_submodule(path.removesuffix(".weight"))
        output, width = layer.weight.shape
        generator = np.random.default_rng(0)
        a, b = (generator.normal(size=size).astype(np.float32) for size in ((width, 4), (4, output)))
        _, settings = soda_adapters.settings.read_method({"name": "lora", "rank": 4, "timestep_mask": {}}, "transformer")
        part = soda_adapters.Part("lora", settings, [f"^{path}$"], "", weights={path: {"a": a, "b": b}})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            soda_adapters.load(model, soda_adapters.AdapterFile({"transformer": part}))
        calls = []
        layer.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
        inputs = {
            "hidden_states": torch.randn(2, 4, model.config.in_channels),
            "encoder_hidden_states": torch.randn(2, 3, model.config.joint_attention_dim),
            "timestep": torch.tensor([1.0, 0.6]),
            "img_ids": torch.zeros(2, 4, 4),
            "txt_ids": torch.zeros(2, 3, 4),
        }
        with torch.no_grad():
            model(**inputs)
        ((x, found),) = calls
        plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
        for sample, active in enumerate((1, 2)):
            change = x[sample] @ torch.from_numpy(a[:, :active] @ b[:active])
            torch.testing.assert_close(found[sample], plain[sample] + change, atol=1e-3, rtol=1e-5)

    def test_what_has_no_timestep_is_refused(self):
        class Other(torch.nn.Module):
            def __init__(self, unet):
                super().__init__()
                for name, child in unet.named_children():
                    self.add_module(name, child)

            def forward(self, x):
                return x

        with self.assertRaisesRegex(AdapterError, "no argument `timestep`"):
            soda_adapters.load(Other(self.unet), base.path_of("t-lora"))
        vectors = self.vectors("t-lora")
        soda_adapters.load(self.unet, base.path_of("t-lora"))
        with self.assertRaisesRegex(AdapterError, "call the network with `timestep`"):
            self.unet(vectors["sample"], timestep=None, encoder_hidden_states=vectors["states"])
        self.unet.fuse_qkv_projections()
        with self.assertRaisesRegex(AdapterError, "unfuse_qkv_projections"):
            self.predict(vectors)
        self.unet.unfuse_qkv_projections()
        self.assert_prediction(vectors, 1)


if __name__ == "__main__":
    unittest.main()
