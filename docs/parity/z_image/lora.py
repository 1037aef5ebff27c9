"""Adapter files for Z-Image in the names of several tools, and what the tools make of them.

    pip install torch diffusers transformers peft lycoris-lora==3.2.0.post2 safetensors
    COMFYUI=PATH python docs/parity/z_image/lora.py
    COMFYUI=PATH python docs/parity/z_image/lora.py check target/debug/soda

COMFYUI is a folder with ComfyUI's code, of which comfy/lora.py and comfy/weight_adapter are used. The first
command writes crates/soda-pipeline/tests/fixtures/z_image, which tests/transformer_files reads. The transformer
is that of transformer.py with uneven sizes. For each adapter file there is FILE.expected.safetensors, with the
change of each weight times a probe vector:

    diffusers, ai-toolkit*, musubi, kohya    load_lora_weights and fuse_lora of diffusers
    comfyui, onetrainer                      load_lora and calculate_weight of ComfyUI
    peft/*                                   merge_and_unload of PEFT, on diffusers' layers or on the original ones
    lycoris-*                                merge_to of LyCORIS, on the original layers

kohya is read by both, with one result. The second command exports adapters with soda for the tiny model of
pipeline.py, loads them with diffusers, PEFT and ComfyUI, and compares with the model that soda merges.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from peft import BOFTConfig, HRAConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))
import original
from adapter_files import comfyui
from adapter_files.helpers import Family, check_same, fill_adapter, fused_by_diffusers, lokr, lora, report
from models import ROOT, fill
from transformer import CONFIGS

FIXTURES = ROOT / "crates/soda-pipeline/tests/fixtures/z_image"
UNEVEN = CONFIGS["z-image-uneven"]

# Layers of the original code: one of each kind.
QKV = ["layers.0.attention.qkv", "noise_refiner.1.attention.qkv"]
LAYERS = [
    *QKV,
    "context_refiner.0.attention.out",
    "layers.0.feed_forward.w1",
    "layers.0.feed_forward.w2",
    "layers.0.adaLN_modulation.0",
    "cap_embedder.1",
    "t_embedder.mlp.2",
]
# diffusers reads these in its own names alone.
OUTSIDE = ["x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"]

DIFFUSERS = [
    "layers.0.attention.to_q",
    "layers.0.attention.to_v",
    "noise_refiner.1.attention.to_k",
    "context_refiner.0.attention.to_out.0",
    "layers.0.feed_forward.w1",
    "layers.0.feed_forward.w2",
    "layers.0.adaLN_modulation.0",
    "cap_embedder.1",
    "t_embedder.mlp.2",
    "all_x_embedder.2-1",
    "all_final_layer.2-1.adaLN_modulation.1",
]


def transformer() -> ZImageTransformer2DModel:
    return fill(ZImageTransformer2DModel(**UNEVEN)).double()


def original_state(state: dict) -> dict:
    """The checkpoint of the original code, checked with diffusers' converter."""
    out = original.original_state(state, torch.cat)
    check_same(diffusers_state(out), state)
    return out


def diffusers_state(checkpoint: dict) -> dict:
    return convert_z_image_transformer_checkpoint_to_diffusers(dict(checkpoint))


FAMILY = Family(FIXTURES, transformer, original_state, diffusers_state)


def by_diffusers(path: Path, model=None) -> dict:
    """The weights of the transformer after load_lora_weights and fuse_lora."""
    return fused_by_diffusers(ZImagePipeline, model if model is not None else transformer(), path)


def by_comfyui(path: Path, state: dict | None = None) -> dict:
    """The weights of the transformer, in diffusers' names, after ComfyUI patched the original ones."""
    state = transformer().state_dict() if state is None else state
    thirds = {key.removesuffix(".weight"): original.original_module(key.removesuffix(".weight")) for key in state if key.endswith(".weight")}
    return diffusers_state(comfyui.merged(original_state(state), path, thirds))


def lora_files(state: dict) -> None:
    """LoRAs and LoKrs that diffusers or ComfyUI reads."""
    model = transformer()
    odd = DIFFUSERS[3]
    model.add_adapter(LoraConfig(r=2, lora_alpha=3, rank_pattern={odd: 3}, alpha_pattern={odd: 4}, target_modules=DIFFUSERS))
    fill_adapter(model, "diffusers")
    metadata = dict(model.peft_config["default"].to_dict())
    metadata["target_modules"], metadata["base_model_name_or_path"] = sorted(metadata["target_modules"]), None
    ZImagePipeline.save_lora_weights(
        FIXTURES, get_peft_model_state_dict(model), weight_name="diffusers.safetensors", transformer_lora_adapter_metadata=metadata
    )
    FAMILY.expect("diffusers", by_diffusers(FIXTURES / "diffusers.safetensors"))

    toolkit, musubi, onetrainer = {}, {}, {}
    for index, layer in enumerate(DIFFUSERS):
        a, b = lora(layer, model.get_submodule(layer).weight.shape, 2 + index % 2)
        toolkit[f"diffusion_model.{layer}.lora_A.weight"], toolkit[f"diffusion_model.{layer}.lora_B.weight"] = a, b
        for tensors, name in [(musubi, "lora_unet_" + layer.replace(".", "_")), (onetrainer, f"transformer.{layer}")]:
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = a, b
            tensors[f"{name}.alpha"] = torch.tensor(1.5 + index)
    FAMILY.expect("ai-toolkit", by_diffusers(FAMILY.save("ai-toolkit", toolkit)))
    # As musubi-tuner names the architecture.
    FAMILY.expect("musubi", by_diffusers(FAMILY.save("musubi", musubi, {"ss_base_model_version": "z_image"})))
    FAMILY.expect("onetrainer", by_comfyui(FAMILY.save("onetrainer", onetrainer)))

    comfy, kohya = {}, {}
    for index, layer in enumerate(LAYERS + OUTSIDE):
        a, b = lora(layer, state[f"{layer}.weight"].shape, 2 + index % 2)
        comfy[f"diffusion_model.{layer}.lora_A.weight"], comfy[f"diffusion_model.{layer}.lora_B.weight"] = a, b
        if layer in LAYERS:
            name = "lora_unet_" + layer.replace(".", "_")
            kohya[f"{name}.lora_down.weight"], kohya[f"{name}.lora_up.weight"] = a, b
            kohya[f"{name}.alpha"] = torch.tensor(1.5 + index)
    # Queries, keys and values with an A each, joined to one LoRA of thrice the rank, as musubi-tuner does for ComfyUI.
    name = "lora_unet_" + QKV[1].replace(".", "_")
    parts = [lora(f"part.{index}", (UNEVEN["dim"], UNEVEN["dim"]), 2) for index in range(3)]
    kohya[f"{name}.lora_down.weight"] = torch.cat([a for a, _ in parts])
    kohya[f"{name}.lora_up.weight"] = torch.block_diag(*[b for _, b in parts])
    FAMILY.expect("comfyui", by_comfyui(FAMILY.save("comfyui", comfy)))
    path = FAMILY.save("kohya", kohya)
    FAMILY.expect("kohya", by_diffusers(path))
    report("kohya in ComfyUI, against diffusers", by_comfyui(path), by_diffusers(path), transformer().state_dict())

    few = DIFFUSERS[:5] + DIFFUSERS[9:]
    shapes = {layer: tuple(model.get_submodule(layer).weight.shape) for layer in few}
    tensors = lokr("ai-toolkit-lokr", lambda layer: f"diffusion_model.{layer}", shapes, 7)
    path = FAMILY.save("ai-toolkit-lokr", tensors)
    FAMILY.expect("ai-toolkit-lokr", by_diffusers(path))
    report("LoKr in ComfyUI, against diffusers", by_comfyui(path), by_diffusers(path), transformer().state_dict())


def peft_directories() -> None:
    """Directories of PEFT, on diffusers' layers and on the original ones."""
    few = [*QKV, "layers.0.feed_forward.w1", "layers.0.adaLN_modulation.0"]
    for name, config in [
        ("lora", LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=DIFFUSERS)),
        ("dora-original", LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=few)),
        ("pissa-original", LoraConfig(r=2, lora_alpha=2, init_lora_weights="pissa", target_modules=few)),
        ("loha-original", LoHaConfig(r=2, alpha=3, target_modules=few)),
        ("lokr-original", LoKrConfig(r=2, alpha=3, decompose_factor=7, target_modules=few)),
        ("oft-original", OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=few)),
        ("boft-original", BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=1, target_modules=few)),
        ("hra-original", HRAConfig(r=2, target_modules=few)),
    ]:
        FAMILY.peft_directory(name, config, of_diffusers=name == "lora")


def lycoris_files() -> None:
    """Files of LyCORIS on the original layers."""
    few = [*QKV, "layers.0.feed_forward.w1", "layers.0.adaLN_modulation.0"]
    for name, algo, options in [
        ("locon-dora-in", "lora", {"dora_wd": True, "wd_on_output": False}),
        ("locon-dora-out", "lora", {"dora_wd": True, "wd_on_output": True}),
        # With another alpha than the rank, LyCORIS 3.2 scales products twice where it merges.
        ("loha", "loha", {"linear_alpha": 2}),
        # 168 outputs of queries, keys and values as 7 x 24, which are no thirds, and as 6 x 28.
        ("lokr", "lokr", {"factor": 7, "linear_dim": 100}),
        ("lokr-thirds", "lokr", {"factor": 6, "linear_dim": 2, "linear_alpha": 2}),
        ("oft", "diag-oft", {"linear_dim": 7}),
        ("full", "full", {}),
    ]:
        # 149 outputs have no blocks of seven.
        layers = {"full": few[:1], "diag-oft": [*QKV, few[3]]}.get(algo, few)
        FAMILY.lycoris_file(name, algo, options, layers)


# --- Files of soda, read by the others ---------------------------------------------------------


def check(soda: str) -> None:
    """Exports of adapters for the tiny model, loaded by diffusers, PEFT and ComfyUI."""
    load = lambda folder: ZImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base = root / "base"
        original.write_base(base)
        plain = load(base).state_dict()
        run = lambda *args: subprocess.run([soda, *map(str, args)], check=True, stdout=subprocess.DEVNULL)
        outside = r"layers\..*adaLN_modulation\.0|all_final_layer.*adaLN_modulation\.1|all_x_embedder\.2-1|cap_embedder\.1"
        targets = r".*(to_q|to_k|to_v|to_out\.0|feed_forward\.w[13])|" + outside
        for name, config in [
            ("lora", LoraConfig(r=4, lora_alpha=2, target_modules=targets)),
            ("dora", LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=targets)),
            ("oft", OFTConfig(oft_block_size=4, target_modules=r".*(to_q|to_k|to_v|to_out\.0|feed_forward\.w[13])")),
        ]:
            model = get_peft_model(load(base), config)
            fill_adapter(model, name)
            model.save_pretrained(root / name)
            expected = model.merge_and_unload().state_dict()
            run("import", root / name, "--base", base, "--out", root / f"{name}.st")
            run("merge", "--base", base, "--adapter", root / f"{name}.st", "--out", root / f"{name}-merged")
            merged = load(root / f"{name}-merged").state_dict()
            report(f"{name}: merged, against PEFT", merged, expected, plain)
            export = lambda format, out: run(
                "export", "--base", base, "--adapter", root / f"{name}.st", "--format", format, "--error", "0", "--out", out
            )
            for format in ["diffusers", "kohya"]:
                out = root / f"{name}-{format}.safetensors"
                export(format, out)
                # diffusers leaves out the first and the last layer in the original names.
                skip = [key for key in plain if key.startswith("all_")] if format == "kohya" else []
                report(f"{name}: {format} in diffusers", by_diffusers(out, load(base)), merged, plain, skip)
                report(f"{name}: {format} in ComfyUI", by_comfyui(out, plain), merged, plain)
            out = root / f"{name}-peft"
            export("peft", out)
            again = PeftModel.from_pretrained(load(base), out).merge_and_unload().state_dict()
            report(f"{name}: peft in PEFT", again, merged, plain)
            out = root / f"{name}-diff.safetensors"
            export("diff", out)
            report(f"{name}: diff in ComfyUI", by_comfyui(out, plain), merged, plain)


def main() -> None:
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir(parents=True)
    lora_files(original_state(transformer().state_dict()))
    peft_directories()
    lycoris_files()


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2])
    else:
        main()
