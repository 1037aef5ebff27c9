"""New words in ComfyUI's own tokenizers and text encoder. `test_comfyui.py` says how to run these tests."""

import json
import os
import tempfile
import unittest

import numpy as np

import test_comfyui as base

import diffusers
import soda_adapters
import torch
from comfy.sd1_clip import SD1Tokenizer, SDClipModel
from comfy.sdxl_clip import SDXLTokenizer
from safetensors.torch import save_file


def words(*tokens, components=("text_encoder",), width=160):
    """An adapter that has new words alone, of two vectors each."""
    generator = np.random.default_rng(len(tokens[0]))
    vectors = {
        token: {component: generator.normal(size=(2, width)).astype(np.float32) for component in components}
        for token in tokens
    }
    return soda_adapters.AdapterFile({}, tokens=vectors)


class NewWords(unittest.TestCase):
    """The words of a file in ComfyUI's tokenizers and text encoder."""

    def ids(self, tokenizer, text):
        """Tokens up to the end of the text: numbers, or `word i` for the vectors of a word, and their weights."""
        found = []
        for token, weight in tokenizer.tokenize_with_weights(text)["l"][0][1:]:
            if not torch.is_tensor(token) and token == tokenizer.clip_l.end_token:
                return found
            for word, vectors in getattr(tokenizer.clip_l, "soda_words", {}).items():
                for index, vector in enumerate(vectors):
                    if torch.is_tensor(token) and torch.equal(token, vector):
                        token = f"{word} {index}"
            found.append((token, weight))
        return found

    def test_prompts_have_the_vectors_of_words(self):
        plain_tokenizer = SD1Tokenizer(tokenizer=base.ToyTokenizer)
        tokenizer = base.node.with_words(plain_tokenizer, words("<rocket>", "<rocket>s", "zqx"))
        rocket, plain = [("<rocket> 0", 1.0), ("<rocket> 1", 1.0)], lambda text: self.ids(plain_tokenizer, text)
        for text, wanted in (
            ("a <rocket>, red", plain("a") + rocket + plain(", red")),
            ("<ROCKET>", rocket),
            ("<rocket>s of <rocket>", [("<rocket>s 0", 1.0), ("<rocket>s 1", 1.0)] + plain("of") + rocket),
            ("a (<rocket>:1.5) in (snow)", plain("a") + [(t, 1.5) for t, _ in rocket] + plain("in") + plain("(snow)")),
            ("a (<rocket>)", plain("a") + [(t, 1.1) for t, _ in rocket]),
            ("zqx zqxs azqx", [("zqx 0", 1.0), ("zqx 1", 1.0)] + plain("zqxs azqx")),
            ("a mug", plain("a mug")),
        ):
            found = self.ids(tokenizer, text)
            self.assertEqual([(token, round(weight, 6)) for token, weight in found], wanted, text)
        self.assertNotIsInstance(plain_tokenizer.clip_l, base.node.Words)

    def test_files_of_embeddings_are_still_found(self):
        with tempfile.TemporaryDirectory() as folder:
            vectors = torch.randn(3, 160)
            save_file({"clip_l": vectors}, os.path.join(folder, "mug.safetensors"))
            plain_tokenizer = SD1Tokenizer(embedding_directory=folder, tokenizer=base.ToyTokenizer)
            tokenizer = base.node.with_words(plain_tokenizer, words("<rocket>"))
            found = [token for token, _ in self.ids(tokenizer, "a embedding:mug, <rocket>")]
            rows = torch.stack([token for token in found if torch.is_tensor(token)])
            self.assertTrue(torch.equal(rows, vectors))
            self.assertEqual(found[-2:], ["<rocket> 0", "<rocket> 1"])

    def test_both_text_encoders_of_sdxl_have_their_vectors(self):
        plain_tokenizer = SDXLTokenizer()
        components = ("text_encoder", "text_encoder_2")
        adapter = words("<mug>", components=components, width=768)
        with self.assertRaisesRegex(ValueError, "1280 numbers"):
            base.node.with_words(plain_tokenizer, adapter)
        adapter.tokens["<mug>"]["text_encoder_2"] = np.ones((3, 1280), np.float32)
        tokens = base.node.with_words(plain_tokenizer, adapter).tokenize_with_weights("a <mug> here")
        for key, component in (("l", "text_encoder"), ("g", "text_encoder_2")):
            found = [token for token, _ in tokens[key][0] if torch.is_tensor(token)]
            np.testing.assert_array_equal(torch.stack(found).numpy(), adapter.tokens["<mug>"][component])

    def test_words_that_do_not_fit_are_refused(self):
        plain_tokenizer = SD1Tokenizer(tokenizer=base.ToyTokenizer)
        first = base.node.with_words(plain_tokenizer, words("<rocket>"))
        again = base.node.with_words(first, words("<rocket>"))
        self.assertEqual(list(again.clip_l.soda_words), ["<rocket>"])
        other = words("<rocket>")
        other.tokens["<rocket>"]["text_encoder"] += 1
        for adapter, sentence in (
            (other, "with other vectors"),
            (words("<mug>", components=("text_encoder", "text_encoder_2")), "the CLIP has"),
            (words("<mug>", width=768), "160 numbers"),
            (words("rocket"), "already"),
        ):
            with self.assertRaisesRegex(ValueError, sentence):
                base.node.with_words(first, adapter)

    def test_the_encoded_prompt_is_that_of_transformers(self):
        folder = base.reference.ROOT / "examples/toybox/base"
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(torch.float32)
        config = json.loads((folder / "text_encoder/config.json").read_text())
        special = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
        model = SDClipModel(textmodel_json_config=config, dtype=torch.float32, special_tokens=special)
        weights = {}
        for key, value in pipe.text_encoder.state_dict().items():
            weights[key if key.startswith("text_model.") else f"text_model.{key}"] = value.clone()
        table = "text_model.embeddings.token_embedding.weight"
        rows = model.transformer.get_input_embeddings().weight.shape[0]
        weights[table] = torch.nn.functional.pad(weights[table], (0, 0, 0, rows - len(weights[table])))
        self.assertEqual(model.load_sd(weights).unexpected_keys, [])
        adapter = soda_adapters.read(base.path_of("text"))
        tokenizer = base.node.with_words(SD1Tokenizer(tokenizer=base.ToyTokenizer), adapter)
        adapter.parts = {}
        soda_adapters.load(pipe, adapter)
        prompt = "a photo of a <rocket>, red"
        with torch.no_grad():
            wanted, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
            found, _ = model([[token for token, _ in tokenizer.tokenize_with_weights(prompt)["l"][0]]])
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


if __name__ == "__main__":
    unittest.main()
