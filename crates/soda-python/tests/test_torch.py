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

    def test_words_of_two_adapters_leave_in_any_order(self):
        tokenizer, table = self.pipe.tokenizer, self.pipe.text_encoder.get_input_embeddings().weight
        generator = np.random.default_rng(0)
        vectors = [generator.normal(size=(2, 160)).astype(np.float32) for _ in range(2)]
        adapters = [
            soda_adapters.AdapterFile({}, tokens={token: {"text_encoder": values}})
            for token, values in zip(("<a>", "<b>"), vectors)
        ]
        for first in (0, 1):
            loaded = [soda_adapters.load(self.pipe, adapter) for adapter in adapters]
            with self.assertRaisesRegex(AdapterError, "already"):
                soda_adapters.load(self.pipe, adapters[0])
            loaded[first].unload()
            ids = self.pipe.tokenizer.convert_tokens_to_ids(["<b>", "<b>_1"] if first == 0 else ["<a>", "<a>_1"])
            rows = self.pipe.text_encoder.get_input_embeddings().weight.detach().numpy()[ids]
            np.testing.assert_array_equal(rows, vectors[1 - first])
            loaded[1 - first].unload()
            self.assertIs(self.pipe.tokenizer, tokenizer)
            self.assertIs(self.pipe.text_encoder.get_input_embeddings().weight, table)
        with self.assertRaisesRegex(AdapterError, "has no adapter"):
            soda_adapters.unload(self.pipe)

    def test_a_word_without_brackets_is_no_part_of_another(self):
        vectors = np.ones((1, 160), np.float32)
        ids = lambda text: self.pipe.tokenizer(text).input_ids[1:-1]
        before = ids("zqxs azqx")
        with soda_adapters.load(self.pipe, soda_adapters.AdapterFile({}, tokens={"zqx": {"text_encoder": vectors}})):
            word = self.pipe.tokenizer.convert_tokens_to_ids("zqx")
            self.assertEqual(ids("zqx, ZQX")[::2], [word, word])
            self.assertEqual(ids("zqxs azqx"), before)

    def test_a_bare_module_is_loaded(self):
        unet = self.pipe.unet
        with soda_adapters.load(unet, path_of("subspace"), 0.3):
            self.assert_merged("subspace", 0.3)
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


class TwoTextEncoders(unittest.TestCase):
    """A tiny SDXL with random weights, and an adapter that is made here."""

    def test_all_parts_of_sdxl_are_loaded(self):
        pipe = sdxl()
        before = {name: {k: v.clone() for k, v in getattr(pipe, name).state_dict().items()} for name in PARTS}
        generator = np.random.default_rng(0)
        parts = {}
        for name, key in PARTS.items():
            weight = parameter(pipe, f"{name}.{key}")
            a, b = (generator.normal(size=size).astype(np.float32) for size in ((weight.shape[1], 2), (2, weight.shape[0])))
            _, settings = soda_adapters.settings.read_method({"name": "lora", "rank": 2}, name)
            parts[name] = soda_adapters.Part("lora", settings, [f"^{key}$"], "", weights={key: {"a": a, "b": b}})
        vectors = {name: generator.normal(size=(2, 32)).astype(np.float32) for name in ("text_encoder", "text_encoder_2")}
        adapter = soda_adapters.AdapterFile(parts, tokens={"<mug>": vectors})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            soda_adapters.load(pipe, adapter, strength=0.5)
        for name, key in PARTS.items():
            named = parts[name].weights[key]
            change = torch.from_numpy(0.5 * (named["a"] @ named["b"]).T)
            base = before[name].get(key, before[name].get(key.removeprefix("text_model.")))
            torch.testing.assert_close(parameter(pipe, f"{name}.{key}"), base + change, atol=1e-6, rtol=0)
        for name, tokenizer in (("text_encoder", pipe.tokenizer), ("text_encoder_2", pipe.tokenizer_2)):
            first = tokenizer.convert_tokens_to_ids("<mug>")
            table = getattr(pipe, name).get_input_embeddings().weight.detach().numpy()
            np.testing.assert_array_equal(table[first : first + 2], vectors[name])
            text = getattr(pipe, name)
            self.assertEqual(getattr(text, "text_model", text).eos_token_id, tokenizer.eos_token_id)
        soda_adapters.unload(pipe)
        text = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
        self.assertEqual(text.eos_token_id, 2)
        for name in PARTS:
            after = getattr(pipe, name).state_dict()
            self.assertTrue(all(torch.equal(after[key], value) for key, value in before[name].items()), name)


PARTS = {
    "unet": "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "text_encoder": "text_model.encoder.layers.0.self_attn.q_proj.weight",
    "text_encoder_2": "text_model.encoder.layers.1.mlp.fc1.weight",
}


def sdxl():
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = CLIPTextConfig(**sizes, vocab_size=787, eos_token_id=2, projection_dim=32, hidden_act="gelu")
    tokenizers = [CLIPTokenizer.from_pretrained(TOYBOX, subfolder="tokenizer") for _ in range(2)]
    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
    )


class Trained(unittest.TestCase):
    def test_networks_of_a_pipeline_are_trained_and_saved(self):
        from soda_adapters.training import SodaAdam, attach

        pipe = pipeline()
        ids = torch.tensor([[786, 5, 6, 786]])
        method = {"name": "soda", "rotation": {}, "spectrum": {"basis": "qr"}}
        for component, targets in (("unet", ["cross-attention"]), ("text_encoder", ["text-attention"])):
            network = getattr(pipe, component)
            before = {key: value.clone() for key, value in network.state_dict().items()}
            run = (
                (lambda: network(torch.ones(1, 4, 16, 16), 5, torch.ones(1, 4, 160)).sample)
                if component == "unet"
                else (lambda: network(ids).last_hidden_state)
            )
            with torch.no_grad():
                base = run()
            adapters = attach(network, method, targets, component=component)
            self.assertTrue(all(path.startswith("text_model.") == (component != "unet") for path in adapters.weights))
            with torch.no_grad():
                self.assertTrue(torch.equal(run(), base))
            optimizer = SodaAdam(adapters.parameter_groups(0.05, 0.05))
            run().square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                trained = run()
            adapter = adapters.file(base="toybox")
            adapters.detach()
            after = network.state_dict()
            self.assertTrue(all(torch.equal(after[key], value) for key, value in before.items()))
            soda_adapters.load(pipe, adapter)
            with torch.no_grad():
                torch.testing.assert_close(run(), trained, atol=1e-4, rtol=0)
                self.assertTrue(float((trained - base).abs().max()) > 1e-2)
            soda_adapters.unload(pipe)


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
