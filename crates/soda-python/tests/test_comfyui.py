"""The ComfyUI node, on ComfyUI's own model patcher. `COMFYUI` names a folder with its code:

    COMFYUI=PATH python -m unittest discover -s crates/soda-python/tests -p 'test_comfyui*.py'
"""

import importlib.util
import logging
import os
import sys
import types
import unittest

import numpy as np

import soda_adapters
import test_formulas as reference

FOLDER = os.environ.get("COMFYUI")
if not FOLDER:
    raise unittest.SkipTest("the variable COMFYUI names no folder with ComfyUI's code")
sys.path.insert(0, FOLDER)
import torch
from comfy.cli_args import args

args.cpu = True
import comfy.lora
import comfy.model_patcher
import comfy.sd
from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from comfy.weight_adapter import LoRAAdapter

spec = importlib.util.spec_from_file_location("soda_loader", reference.ROOT / "examples/comfyui/soda_loader.py")
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj.weight"
# The bundled UNet in the configuration of ComfyUI.
UNET = {
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2.5],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
}
KEYS = {
    f"unet.{QUERY}": "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    "unet.conv_in.weight": "diffusion_model.input_blocks.0.0.weight",
    "unet.conv_out.weight": "diffusion_model.out.2.weight",
    f"text_encoder.{TEXT}": f"clip_l.transformer.{TEXT}",
}


class Weights(torch.nn.Module):
    """A model with some weights by the keys of ComfyUI."""

    def __init__(self, weights):
        super().__init__()
        self.model_config = types.SimpleNamespace(unet_config=UNET)
        for key, weight in weights.items():
            *path, name = key.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            module.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))


def patcher(keys, dtype=torch.float32):
    weights = {}
    for path in keys:
        component, _, inside = path.partition(".")
        weights[KEYS[path]] = torch.from_numpy(reference.base_weight(component, inside)).to(dtype)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(Weights(weights), load_device=cpu, offload_device=cpu)


def unet(dtype=torch.float32):
    return patcher([path for path in KEYS if path.startswith("unet")], dtype)


class Clip:
    """What the node uses of ComfyUI's CLIP."""

    def __init__(self, patcher, tokenizer):
        self.patcher, self.tokenizer = patcher, tokenizer

    def clone(self):
        return Clip(self.patcher.clone(), self.tokenizer)


class ToyTokenizer(SDTokenizer):
    """ComfyUI's tokenizer with the vocabulary of the bundled model."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        folder = reference.ROOT / "examples/toybox/base/tokenizer"
        super().__init__(str(folder), embedding_directory=embedding_directory, embedding_size=160)


def path_of(name):
    return str(reference.FIXTURES / f"{name}.safetensors")


class Node(unittest.TestCase):
    def check(self, patcher, name, strength, most=1e-5):
        patcher.patch_model()
        weights = patcher.model.state_dict()
        compared = 0
        for key, merged in reference.expected(name).items():
            at, _, path = key.partition("/")
            if float(at) == strength and KEYS.get(path) in weights:
                found = reference.trimmed(weights[KEYS[path]].float().numpy())
                error = np.abs(found - merged).max() / np.abs(merged).max()
                self.assertTrue(error <= most, f"{name} {key}: {error:.1e}")
                compared += 1
        self.assertTrue(compared)
        patcher.unpatch_model()

    def assert_base(self, patcher):
        weights = patcher.model.state_dict()
        for path, key in KEYS.items():
            if key in weights:
                base = torch.from_numpy(reference.base_weight(*path.split(".", 1)))
                self.assertTrue(torch.equal(weights[key], base), key)

    def test_every_method_is_the_merged_weight(self):
        model = unet()
        for name in reference.NAMES:
            if name in ("flux", "text"):
                continue
            with self.subTest(name):
                for strength in (0.3, 1.0):
                    found, _ = node.load(model, None, path_of(name), strength, 1.0)
                    self.check(found, name, strength)
                    self.assert_base(found)

    def test_text_encoders_have_their_own_strength(self):
        model = patcher([f"unet.{QUERY}"])
        clip = Clip(patcher([f"text_encoder.{TEXT}"]), SD1Tokenizer(tokenizer=ToyTokenizer))
        with self.assertLogs(level=logging.WARNING) as logs:
            node.load(model, None, path_of("text"), 0.3, 1.0)
        self.assertIn("<rocket>", logs.output[0])
        model, clip = node.load(model, clip, path_of("text"), 0.3, 1.0)
        self.check(model, "text", 0.3)
        self.check(clip.patcher, "text", 1.0)
        self.assert_base(clip.patcher)

    def test_other_patches_and_adapters_add_their_changes(self):
        model = unet()
        key = KEYS[f"unet.{QUERY}"]
        base = model.model.state_dict()[key].clone()

        def changed(patched):
            patched.patch_model()
            found = patched.model.state_dict()[key].clone() - base
            patched.unpatch_model()
            return found

        up, down = torch.randn(64, 2), torch.randn(2, 64) * 0.1
        other = model.clone()
        other.add_patches({key: LoRAAdapter(set(), (up, down, 2.0, None, None, None))}, 0.5)
        alone = [changed(other)]
        names = ("kronecker-svd", "hra")
        alone += [changed(node.load(model, None, path_of(name), 0.3, 1.0)[0]) for name in names]
        together = other
        for name in names:
            together, _ = node.load(together, None, path_of(name), 0.3, 1.0)
        self.assertEqual(len(together.patches[key]), 2)
        torch.testing.assert_close(changed(together), sum(alone), atol=2e-6, rtol=0)
        # The first patcher has its own patch alone.
        self.assertEqual(len(other.patches[key]), 1)

    def test_half_precision_is_rounded_once(self):
        model, _ = node.load(unet(torch.float16), None, path_of("kronecker-svd"), 1.0, 1.0)
        self.check(model, "kronecker-svd", 1.0, most=1e-3)

    def test_decompositions_are_kept(self):
        model = unet()
        counts = []
        before = node.formulas.basis_of
        node.formulas.basis_of = lambda *given: counts.append(1) or before(*given)
        try:
            node._FILES.clear()
            for strength in (0.3, 1.0, 0.3):
                found, _ = node.load(model, None, path_of("kronecker-svd"), strength, 1.0)
                self.check(found, "kronecker-svd", strength)
        finally:
            node.formulas.basis_of = before
        self.assertEqual(len(counts), 3)

    def test_rows_of_a_fused_weight_and_swapped_halves(self):
        part = soda_adapters.read(path_of("lora")).parts["unet"]
        base = torch.from_numpy(reference.base_weight("unet", QUERY))
        made = node.formulas.formula(part.method, part.settings, QUERY, part.weights[QUERY], base.shape)
        adapted = node.formulas.adapted(made, base, 0.3)
        fused = torch.cat([torch.zeros(64, 64), base, torch.ones(64, 64)])
        patch = node.SodaPatch(set(), [(node.Part(made, QUERY), 0.3)])
        found = comfy.lora.calculate_weight([(1.0, patch, 1.0, (0, 64, 64), None)], fused.clone(), "key")
        self.assertTrue(torch.equal(found[:64], fused[:64]) and torch.equal(found[128:], fused[128:]))
        torch.testing.assert_close(found[64:128], adapted, atol=1e-6, rtol=0)
        # Newer versions of ComfyUI copy adapters so.
        patch = type(patch)(patch.loaded_keys, [tuple(pair) for pair in patch.weights])
        swap = comfy.utils.swap_scale_shift
        found = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, swap)], swap(base), "key")
        torch.testing.assert_close(found, swap(adapted), atol=1e-6, rtol=0)

    def test_names_of_flux2(self):
        self.assertEqual(node.flux2_name("transformer_blocks.3.attn.to_k.weight"), ("double_blocks.3.img_attn.qkv.weight", 1))
        self.assertEqual(
            node.flux2_name("single_transformer_blocks.9.attn.to_out.weight"), ("single_blocks.9.linear2.weight", None)
        )
        self.assertIsNone(node.flux2_name("transformer_blocks.3.attn.other.weight"))
        base = torch.from_numpy(reference.base_weight("transformer", "single_transformer_blocks.0.attn.to_out.weight"))
        key = "diffusion_model.single_blocks.0.linear2.weight"
        cpu = torch.device("cpu")
        model = comfy.model_patcher.ModelPatcher(Weights({key: base}), load_device=cpu, offload_device=cpu)
        found, _ = node.load(model, None, path_of("flux"), 0.3, 1.0)
        found.patch_model()
        merged = reference.expected("flux")["0.3/transformer.single_transformer_blocks.0.attn.to_out.weight"]
        weight = reference.trimmed(found.model.state_dict()[key].numpy())
        self.assertTrue(np.abs(weight - merged).max() <= 1e-5 * np.abs(merged).max())

    def test_swapped_halves_of_flux2(self):
        part = soda_adapters.read(path_of("full")).parts["unet"]
        part.weights = {"norm_out.linear.weight": part.weights[QUERY]}
        base = torch.from_numpy(reference.base_weight("unet", QUERY))
        adapter = soda_adapters.AdapterFile({"transformer": part})
        key = "diffusion_model.final_layer.adaLN_modulation.1.weight"
        cpu = torch.device("cpu")
        swap = comfy.utils.swap_scale_shift
        model = comfy.model_patcher.ModelPatcher(Weights({key: swap(base)}), load_device=cpu, offload_device=cpu)
        with self.assertLogs(level=logging.WARNING):
            node.patch(model, "transformer", adapter, {}, 1.0)
        model.patch_model()
        found = swap(model.model.state_dict()[key]) - base
        delta = torch.from_numpy(part.weights["norm_out.linear.weight"]["delta"]).T
        torch.testing.assert_close(found, delta, atol=1e-6, rtol=0)

    def test_a_third_of_a_layer_of_z_image(self):
        part = soda_adapters.read(path_of("full")).parts["unet"]
        path = "layers.0.attention.to_k.weight"
        part.weights = {path: part.weights[QUERY]}
        base = torch.from_numpy(reference.base_weight("unet", QUERY))
        adapter = soda_adapters.AdapterFile({"transformer": part})
        key = "diffusion_model.layers.0.attention.qkv.weight"
        cpu = torch.device("cpu")
        fused = torch.cat([base + 1, base, base + 2])
        model = comfy.model_patcher.ModelPatcher(Weights({key: fused}), load_device=cpu, offload_device=cpu)
        with self.assertLogs(level=logging.WARNING):
            node.patch(model, "transformer", adapter, {}, 1.0)
        model.patch_model()
        parts = (model.model.state_dict()[key] - torch.cat([base + 1, base, base + 2])).chunk(3)
        delta = torch.from_numpy(part.weights[path]["delta"]).T
        torch.testing.assert_close(parts[1], delta, atol=1e-6, rtol=0)
        self.assertFalse(parts[0].any() or parts[2].any())

    def test_names_of_z_image(self):
        for path, name in [
            ("noise_refiner.1.attention.to_out.0.weight", ("noise_refiner.1.attention.out.weight", None)),
            ("layers.29.attention.to_v.weight", ("layers.29.attention.qkv.weight", 2)),
            ("layers.0.feed_forward.w2.weight", ("layers.0.feed_forward.w2.weight", None)),
            ("all_final_layer.2-1.linear.weight", ("final_layer.linear.weight", None)),
            ("all_x_embedder.2-1.weight", ("x_embedder.weight", None)),
            ("transformer_blocks.0.attn.to_q.weight", None),
        ]:
            self.assertEqual(node.z_image_name(path), name)

    def test_all_weights_of_diffusers_have_a_name(self):
        import diffusers

        blocks = ["CrossAttnDownBlock2D"] * 2, ["CrossAttnUpBlock2D"] * 2
        sd = {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)}
        sdxl = {
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *blocks[0]),
            "up_block_types": (*blocks[1], "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
        configs = (
            (sd, [2] * 4, [1, 2, 4, 4], [1] * 6 + [0] * 2, [1] * 9 + [0] * 3, 1),
            (sdxl, [2] * 3, [1, 2, 4], [0, 0, 2, 2, 10, 10], [0] * 3 + [2] * 3 + [10] * 3, 10),
        )
        for config, blocks, channels, down, up, middle in configs:
            with torch.device("meta"):
                network = diffusers.UNet2DConditionModel(**config)
            names = {"num_res_blocks": blocks, "channel_mult": channels, "transformer_depth_middle": middle}
            names |= {"transformer_depth": down, "transformer_depth_output": up}
            places = node.unet_places(types.SimpleNamespace(model_config=types.SimpleNamespace(unet_config=names)))
            missing = [name for name, weight in network.named_parameters() if weight.ndim > 1 and name not in places]
            self.assertEqual(missing, [])
        with torch.device("meta"):
            network = diffusers.Flux2Transformer2DModel(num_layers=1, num_single_layers=1)
        missing = [n for n, weight in network.named_parameters() if weight.ndim > 1 and node.flux2_name(n) is None]
        self.assertEqual(missing, [])
        with torch.device("meta"):
            network = diffusers.ZImageTransformer2DModel(n_layers=1, n_refiner_layers=1)
        # Pad tokens are no matrices of layers.
        layers = [n for n, weight in network.named_parameters() if weight.ndim > 1 and n.endswith(".weight")]
        self.assertEqual([n for n in layers if node.z_image_name(n) is None], [])

    def test_another_base_is_refused(self):
        other = unet()
        with torch.no_grad():
            other.model.get_parameter(KEYS["unet.conv_in.weight"]).add_(1)
        with self.assertRaisesRegex(ValueError, "another base"):
            node.load(other, None, path_of("kronecker-svd"), 1.0, 1.0)
        with self.assertLogs(level=logging.WARNING) as logs:
            node.load(other, None, path_of("lora"), 1.0, 1.0)
        self.assertIn("may not be those of the base", logs.output[0])

    def test_missing_weights_are_refused(self):
        with self.assertRaisesRegex(ValueError, "lacks"):
            node.load(patcher(["unet.conv_in.weight"]), None, path_of("lora"), 1.0, 1.0)


if __name__ == "__main__":
    unittest.main()
