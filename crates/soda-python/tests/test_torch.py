"""Loading onto torch modules and diffusers pipelines. These tests need torch and diffusers:

    pip install -e 'crates/soda-python[diffusers]'
    python -m unittest discover -s crates/soda-python/tests -p 'test_torch*.py'
"""

import unittest
import warnings

import numpy as np

try:
    import diffusers
    import torch
except ImportError as error:
    raise unittest.SkipTest(f"torch and diffusers are not installed: {error}") from None

import soda_adapters
import test_formulas as reference
from soda_adapters import AdapterError

TOYBOX = reference.ROOT / "examples/toybox/base"


def pipeline(dtype=torch.float32):
    found = diffusers.StableDiffusionPipeline.from_pretrained(TOYBOX, torch_dtype=dtype, safety_checker=None)
    found.set_progress_bar_config(disable=True)
    return found


def weights(pipe):
    return {
        f"{name}.{key}": value.clone()
        for name in ("unet", "text_encoder")
        for key, value in getattr(pipe, name).state_dict().items()
    }


def parameter(pipe, key):
    component, _, path = key.partition(".")
    named = dict(getattr(pipe, component).named_parameters())
    return named[path if path in named else path.removeprefix("text_model.")]


def path_of(name):
    return reference.FIXTURES / f"{name}.safetensors"


class Pipelines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipe = pipeline()
        cls.before = weights(cls.pipe)

    def assert_base(self):
        after = weights(self.pipe)
        self.assertEqual(after.keys(), self.before.keys())
        for key, value in after.items():
            self.assertTrue(torch.equal(value, self.before[key]), key)

    def assert_merged(self, name, strength):
        for key, merged in reference.expected(name).items():
            at, _, inside = key.partition("/")
            if float(at) == strength:
                found = reference.trimmed(parameter(self.pipe, inside).detach().numpy())
                error = np.abs(found - merged).max() / np.abs(merged).max()
                self.assertTrue(error <= 1e-5, f"{name} {key}: {error:.1e}")

    def test_every_method_loads_moves_and_unloads(self):
        for name in reference.NAMES:
            if name == "flux":
                continue
            with self.subTest(name):
                soda_adapters.load(self.pipe, path_of(name), strength=0.3)
                self.assert_merged(name, 0.3)
                soda_adapters.set_strength(self.pipe, 1.0)
                self.assert_merged(name, 1.0)
                soda_adapters.set_strength(self.pipe, 0)
                if name != "text":
                    self.assert_base()
                soda_adapters.unload(self.pipe)
                self.assert_base()

    def test_two_adapters_add_their_changes(self):
        key = f"unet.{reference_query()}"
        base = parameter(self.pipe, key).detach().clone()
        changes = []
        for name in ("lora", "hra"):
            loaded = soda_adapters.load(self.pipe, path_of(name))
            changes.append(parameter(self.pipe, key).detach() - base)
            loaded.unload()
        first = soda_adapters.load(self.pipe, path_of("lora"))
        second = soda_adapters.load(self.pipe, path_of("hra"))
        found = parameter(self.pipe, key).detach() - base
        torch.testing.assert_close(found, changes[0] + changes[1], atol=1e-6, rtol=0)
        first.unload()
        torch.testing.assert_close(parameter(self.pipe, key).detach() - base, changes[1], atol=1e-6, rtol=0)
        second.unload()
        soda_adapters.load(self.pipe, path_of("lora"))
        soda_adapters.unload(self.pipe)
        self.assert_base()

    def test_new_words_and_pictures(self):
        prompt = "a photo of a <rocket>"
        draw = lambda: self.pipe(prompt, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
        base, size = draw(), len(self.pipe.tokenizer)
        soda_adapters.load(self.pipe, path_of("text"))
        vectors = soda_adapters.read(path_of("text")).tokens["<rocket>"]["text_encoder"]
        ids = self.pipe.tokenizer(self.pipe.maybe_convert_prompt(prompt, self.pipe.tokenizer)).input_ids
        self.assertEqual([id for id in ids if id >= size], list(range(size, size + len(vectors))))
        table = self.pipe.text_encoder.get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(table[size : size + len(vectors)], vectors)
        self.assertTrue(np.abs(draw() - base).max() > 1e-3)
        soda_adapters.unload(self.pipe)
        self.assert_base()
        self.assertEqual(len(self.pipe.tokenizer), size)
        np.testing.assert_array_equal(draw(), base)

    def test_a_bare_module_is_loaded(self):
        unet = self.pipe.unet
        soda_adapters.load(unet, path_of("subspace"), 0.3)
        self.assert_merged("subspace", 0.3)
        soda_adapters.unload(unet)
        self.assert_base()
        with self.assertRaisesRegex(AdapterError, "choose one"):
            soda_adapters.load(unet, path_of("text"))

    def test_the_schedule_changes_and_returns(self):
        adapter = soda_adapters.read(path_of("lora"))
        adapter.schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
        before = self.pipe.scheduler
        soda_adapters.load(self.pipe, adapter)
        self.assertEqual(self.pipe.scheduler.config.prediction_type, "v_prediction")
        self.assertTrue(self.pipe.scheduler.config.rescale_betas_zero_snr)
        soda_adapters.unload(self.pipe)
        self.assertIs(self.pipe.scheduler, before)

    def test_another_base_is_refused_and_nothing_changes(self):
        adapter = soda_adapters.read(path_of("kronecker-svd"))
        adapter.parts["unet"].base_hash = "0" * 64
        with self.assertRaisesRegex(AdapterError, "another base"):
            soda_adapters.load(self.pipe, adapter)
        adapter = soda_adapters.read(path_of("lora"))
        adapter.parts["unet"].base_hash = "0" * 64
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            soda_adapters.load(self.pipe, adapter)
        self.assertIn("another base", str(caught[0].message))
        soda_adapters.unload(self.pipe)
        for strength in (float("nan"), "1", True):
            with self.assertRaisesRegex(AdapterError, "finite"):
                soda_adapters.load(self.pipe, path_of("lora"), strength)
        with self.assertRaisesRegex(AdapterError, "not finite"):
            soda_adapters.load(self.pipe, path_of("lora"), 1e39)
        self.assert_base()

    def test_quantized_weights_are_refused(self):
        pipe = pipeline()
        layer = pipe.unet.get_submodule(reference_query().removesuffix(".weight"))
        layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
        with self.assertRaisesRegex(AdapterError, "quantizing"):
            soda_adapters.load(pipe, path_of("lora"))

    def test_half_precision_is_the_rounded_weight(self):
        pipe = pipeline(torch.float16)
        soda_adapters.load(pipe, path_of("kronecker-svd"))
        key = f"unet.{reference_query()}"
        merged = reference.expected("kronecker-svd")[f"1/{key}"]
        found = reference.trimmed(parameter(pipe, key).detach().numpy())
        self.assertEqual(found.dtype, np.float16)
        self.assertTrue(np.abs(found - merged).max() <= np.abs(merged).max() * 6e-4)


class Flux(unittest.TestCase):
    def test_the_transformer_is_loaded(self):
        folder = reference.ROOT / "examples/toyflux/base"
        model = diffusers.Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer").float()
        soda_adapters.load(model, path_of("flux"), 0.3)
        for key, merged in reference.expected("flux").items():
            if key.startswith("0.3/"):
                path = key.removeprefix("0.3/transformer.")
                found = reference.trimmed(model.get_parameter(path).detach().numpy())
                self.assertTrue(np.abs(found - merged).max() <= 1e-5 * np.abs(merged).max())


def reference_query():
    return "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"


if __name__ == "__main__":
    unittest.main()
