"""Adapter files for FLUX.2 in the names of several tools, and what the tools make of them.

    pip install torch diffusers transformers peft lycoris-lora safetensors
    python docs/parity/flux2/lora.py
    python docs/parity/flux2/lora.py check target/debug/soda

The first command writes crates/soda-pipeline/tests/fixtures/flux2, which tests/transformer_files reads. The
transformer is that of transformer.py with uneven sizes. Its weights are a formula of their names. For each
adapter file there is FILE.expected.safetensors, with the change of each weight times a probe vector:

    diffusers, bfl, kohya, lokr-*   load_lora_weights and fuse_lora of diffusers
    peft/*                          merge_and_unload of PEFT, on diffusers' layers or on the original ones
    lycoris-*                       merge_to of LyCORIS, on the original layers

crates/soda-models/tests/fixtures/flux2-original.json has key, shape and probe of each tensor of the
bundled transformer in a single file of the original names, which diffusers' converter reads. The second command exports adapters with soda, loads them with diffusers and PEFT, and
compares with the model that soda merges; and it has diffusers read a single file that soda writes.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from peft import BOFTConfig, HRAConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))
from adapter_files.helpers import Family, check_same, fill_adapter, fused_by_diffusers, lokr, lora, probe, report
from models import fill
from transformer import ROOT, TOYFLUX, UNEVEN

FIXTURES = ROOT / "crates/soda-pipeline/tests/fixtures/flux2"
WIDTH = UNEVEN["num_attention_heads"] * UNEVEN["attention_head_dim"]

# Layers of the original code: one of each kind.
LAYERS = [
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.txt_attn.qkv",
    "double_blocks.0.img_attn.proj",
    "double_blocks.0.txt_mlp.0",
    "double_blocks.0.img_mlp.2",
    "single_blocks.1.linear1",
    "single_blocks.0.linear2",
]
# diffusers reads these in BFL's names alone.
MODULATION = ["single_stream_modulation.lin", "double_stream_modulation_txt.lin"]
OUTSIDE = ["img_in", "time_in.in_layer", "final_layer.linear"]
# diffusers does not exchange the halves of this one in a LoRA, but in a checkpoint it does.
LAST = "final_layer.adaLN_modulation.1"

DIFFUSERS = [
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_k",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.0.attn.add_v_proj",
    "transformer_blocks.0.ff_context.linear_in",
    "single_transformer_blocks.1.attn.to_qkv_mlp_proj",
    "single_transformer_blocks.0.attn.to_out",
    "norm_out.linear",
]


def transformer() -> Flux2Transformer2DModel:
    config = {key: field for key, field in UNEVEN.items() if not key.startswith("_")}
    return fill(Flux2Transformer2DModel(**config)).double()


def original_state(state: dict) -> dict:
    """The checkpoint of the original code, written down anew and checked with diffusers' converter."""
    out = {}
    blocks = {name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}
    for block in sorted(blocks):
        old, new = f"transformer_blocks.{block}.", f"double_blocks.{block}."
        for stream, names in {"img": ["to_q", "to_k", "to_v"], "txt": ["add_q_proj", "add_k_proj", "add_v_proj"]}.items():
            out[f"{new}{stream}_attn.qkv.weight"] = torch.cat([state[f"{old}attn.{name}.weight"] for name in names])
        for theirs, ours in {
            "attn.to_out.0.weight": "img_attn.proj.weight",
            "attn.to_add_out.weight": "txt_attn.proj.weight",
            "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
            "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
            "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
            "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
            "ff.linear_in.weight": "img_mlp.0.weight",
            "ff.linear_out.weight": "img_mlp.2.weight",
            "ff_context.linear_in.weight": "txt_mlp.0.weight",
            "ff_context.linear_out.weight": "txt_mlp.2.weight",
        }.items():
            out[new + ours] = state[old + theirs]
    blocks = {name.split(".")[1] for name in state if name.startswith("single_transformer_blocks.")}
    for block in sorted(blocks):
        old, new = f"single_transformer_blocks.{block}.attn.", f"single_blocks.{block}."
        for theirs, ours in {
            "to_qkv_mlp_proj.weight": "linear1.weight",
            "to_out.weight": "linear2.weight",
            "norm_q.weight": "norm.query_norm.scale",
            "norm_k.weight": "norm.key_norm.scale",
        }.items():
            out[new + ours] = state[old + theirs]
    for theirs, ours in {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "proj_out": "final_layer.linear",
    }.items():
        out[f"{ours}.weight"] = state[f"{theirs}.weight"]
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    out[f"{LAST}.weight"] = torch.cat([shift, scale])
    check_same(diffusers_state(out), state)
    return out


def diffusers_state(original: dict) -> dict:
    return convert_flux2_transformer_checkpoint_to_diffusers(dict(original))


FAMILY = Family(FIXTURES, transformer, original_state, diffusers_state)


def by_diffusers(path: Path, model=None) -> dict:
    """The weights of the transformer after load_lora_weights and fuse_lora, in diffusers' names."""
    return unfused(fused_by_diffusers(Flux2KleinPipeline, model if model is not None else transformer(), path))


def unfused(state: dict) -> dict:
    """With projections apart that diffusers fused for a LoKr."""
    out = {}
    for key, weight in state.items():
        fused = {".to_qkv.": [".to_q.", ".to_k.", ".to_v."]}
        fused |= {".to_added_qkv.": [".add_q_proj.", ".add_k_proj.", ".add_v_proj."]}
        found = [name for name in fused if name in key]
        if found:
            for part, name in zip(weight.chunk(3), fused[found[0]]):
                out[key.replace(found[0], name)] = part
    return state | out if not out else {k: w for k, w in (state | out).items() if ".to_qkv." not in k and ".to_added_qkv." not in k}


def lora_files(state: dict) -> None:
    """LoRAs and LoKrs that diffusers reads."""
    model = transformer()
    odd = DIFFUSERS[2]
    model.add_adapter(LoraConfig(r=2, lora_alpha=3, rank_pattern={odd: 3}, alpha_pattern={odd: 4}, target_modules=DIFFUSERS))
    fill_adapter(model, "diffusers")
    metadata = {key: field for key, field in model.peft_config["default"].to_dict().items()}
    metadata["target_modules"], metadata["base_model_name_or_path"] = sorted(metadata["target_modules"]), None
    Flux2KleinPipeline.save_lora_weights(
        FIXTURES, get_peft_model_state_dict(model), weight_name="diffusers.safetensors", transformer_lora_adapter_metadata=metadata
    )
    FAMILY.expect("diffusers", by_diffusers(FIXTURES / "diffusers.safetensors"))

    bfl, kohya = {}, {}
    for index, layer in enumerate(LAYERS + MODULATION + OUTSIDE):
        shape = state[f"{layer}.weight"].shape
        a, b = lora(layer, shape, 2 + index % 2)
        bfl[f"diffusion_model.{layer}.lora_A.weight"], bfl[f"diffusion_model.{layer}.lora_B.weight"] = a, b
        if layer in LAYERS:
            name = "lora_unet_" + layer.replace(".", "_")
            kohya[f"{name}.lora_down.weight"], kohya[f"{name}.lora_up.weight"] = a, b
            kohya[f"{name}.alpha"] = torch.tensor(1.5 + index)
    # Queries, keys and values with an A each, joined to one LoRA of thrice the rank.
    name = "lora_unet_double_blocks_0_txt_attn_qkv"
    parts = [lora(f"part.{index}", (WIDTH, WIDTH), 2) for index in range(3)]
    kohya[f"{name}.lora_down.weight"] = torch.cat([a for a, _ in parts])
    kohya[f"{name}.lora_up.weight"] = torch.block_diag(*[b for _, b in parts])
    FAMILY.expect("bfl", by_diffusers(FAMILY.save("bfl", bfl)))
    FAMILY.expect("kohya", by_diffusers(FAMILY.save("kohya", kohya)))

    # ai-toolkit: 126 outputs of queries, keys and values as 7 x 18, which are no thirds, and as 6 x 21.
    shapes = {layer: tuple(state[f"{layer}.weight"].shape) for layer in state_layers(state)}
    name = lambda layer: f"diffusion_model.{layer}"
    layers = [LAYERS[0], LAYERS[1], LAYERS[2], LAYERS[6], OUTSIDE[0]]
    for file, factor in [("lokr-bfl", 7), ("lokr-bfl-thirds", 6)]:
        FAMILY.expect(file, by_diffusers(FAMILY.save(file, lokr(file, name, {layer: shapes[layer] for layer in layers}, factor))))
    layers = ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_out"]
    shapes = {layer: tuple(transformer().get_submodule(layer).weight.shape) for layer in layers}
    for file, name in [
        ("lokr-simpletuner", lambda layer: layer),
        ("lokr-lycoris", lambda layer: "lycoris_" + layer.replace(".", "_")),
    ]:
        FAMILY.expect(file, by_diffusers(FAMILY.save(file, lokr(file, name, shapes, 6))))


def state_layers(state: dict) -> list[str]:
    return [key.removesuffix(".weight") for key in state if state[key].dim() == 2]


def peft_directories() -> None:
    """Directories of PEFT, on diffusers' layers and on the original ones."""
    few = [LAYERS[0], LAYERS[1], LAYERS[5], LAST]
    for name, config in [
        ("lora", LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=DIFFUSERS)),
        ("dora-bfl", LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=few)),
        ("pissa-bfl", LoraConfig(r=2, lora_alpha=2, init_lora_weights="pissa", target_modules=few)),
        ("loha-bfl", LoHaConfig(r=2, alpha=3, target_modules=few)),
        ("lokr-bfl", LoKrConfig(r=2, alpha=3, decompose_factor=7, target_modules=few)),
        ("oft-bfl", OFTConfig(oft_block_size=6, use_cayley_neumann=False, target_modules=few)),
        ("boft-bfl", BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=1, target_modules=few)),
        ("hra-bfl", HRAConfig(r=2, target_modules=few)),
    ]:
        FAMILY.peft_directory(name, config, of_diffusers=name == "lora")


def lycoris_files() -> None:
    """Files of LyCORIS on the original layers."""
    few = [LAYERS[0], LAYERS[1], LAYERS[5], LAST]
    for name, algo, options in [
        ("locon-dora-in", "lora", {"dora_wd": True, "wd_on_output": False}),
        ("locon-dora-out", "lora", {"dora_wd": True, "wd_on_output": True}),
        # With another alpha than the rank, LyCORIS 3.2 scales products twice where it merges.
        ("loha", "loha", {"linear_alpha": 2}),
        ("lokr", "lokr", {"factor": 4, "linear_dim": 100}),
        ("lokr-thirds", "lokr", {"factor": 3, "linear_dim": 2, "linear_alpha": 2}),
        ("oft", "diag-oft", {"linear_dim": 6}),
        ("oft-constraint", "diag-oft", {"linear_dim": 7, "constraint": 0.001, "rescaled": True}),
        ("full", "full", {}),
    ]:
        layers = [layer for layer in few if algo not in ["full", "diag-oft"] or "linear1" not in layer]
        FAMILY.lycoris_file(name, algo, options, layers)


def original_keys() -> None:
    """Key, shape and a probe of every tensor of the bundled transformer in a file of the original code."""
    folder = TOYFLUX / "base/transformer"
    state = original_state(Flux2Transformer2DModel.from_pretrained(folder).state_dict())
    keys = {}
    for key, weight in sorted(state.items()):
        rows = probe(weight) if weight.dim() == 2 else weight
        keys[key] = {"shape": list(weight.shape), "probe": float(probe(rows))}
    path = ROOT / "crates/soda-models/tests/fixtures/flux2-original.json"
    path.write_text(json.dumps(keys, separators=(",", ":")) + "\n")
    print(f"{path.name}: {len(keys)} tensors, {path.stat().st_size} bytes")


# --- Files of soda, read by the others ---------------------------------------------------------


def check(soda: str) -> None:
    """Exports of an adapter for toyflux, loaded by diffusers and PEFT, and a single file."""
    base = TOYFLUX / "base"
    load = lambda folder: Flux2Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    plain = load(base).state_dict()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        run = lambda *args: subprocess.run([soda, *map(str, args)], check=True, stdout=subprocess.DEVNULL)
        model = load(base)
        targets = r".*(to_q|to_k|to_v|add_q_proj|to_out\.0|linear_in|to_qkv_mlp_proj)|norm_out\.linear|single.*to_out"
        for name, config in [
            ("lora", LoraConfig(r=4, lora_alpha=2, target_modules=targets)),
            ("dora", LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=targets)),
            ("oft", OFTConfig(oft_block_size=8, target_modules=targets)),
        ]:
            model = get_peft_model(load(base), config)
            fill_adapter(model, name)
            model.save_pretrained(root / name)
            expected = model.merge_and_unload().state_dict()
            run("import", root / name, "--base", base, "--out", root / f"{name}.st")
            run("merge", "--base", base, "--adapter", root / f"{name}.st", "--out", root / f"{name}-merged")
            merged = load(root / f"{name}-merged").state_dict()
            report(f"{name}: merged, against PEFT", merged, expected, plain)
            for format in ["diffusers", "kohya"]:
                out = root / f"{name}-{format}.safetensors"
                run("export", "--base", base, "--adapter", root / f"{name}.st", "--format", format, "--error", "0", "--out", out)
                # diffusers leaves out the last modulation of kohya's names, and takes its halves as they are in BFL's.
                skip = ["norm_out.linear.weight"] if format == "kohya" else []
                report(f"{name}: {format} in diffusers", by_diffusers(out, load(base)), merged, plain, skip)
            out = root / f"{name}-peft"
            run("export", "--base", base, "--adapter", root / f"{name}.st", "--format", "peft", "--error", "0", "--out", out)
            again = PeftModel.from_pretrained(load(base), out).merge_and_unload().state_dict()
            report(f"{name}: peft in PEFT", again, merged, plain)
            out = root / f"{name}-diff.safetensors"
            run("export", "--base", base, "--adapter", root / f"{name}.st", "--format", "diff", "--out", out)
            changed = original_state(plain)
            for key, delta in load_file(out).items():
                name_of = {"lora_unet_" + key.removesuffix(".weight").replace(".", "_"): key for key in changed}
                changed[name_of[key.removesuffix(".diff")]] = changed[name_of[key.removesuffix(".diff")]] + delta
            report(f"{name}: diff on the original layers", diffusers_state(changed), merged, plain)
        single = root / "single.safetensors"
        run("convert", "--base", root / "lora-merged", "--out", single)
        check_same(diffusers_state(load_file(single)), load(root / "lora-merged").state_dict())
        found = Flux2Transformer2DModel.from_single_file(single, config=str(base), subfolder="transformer", torch_dtype=torch.float32)
        check_same(found.state_dict(), load(root / "lora-merged").state_dict())
        save_file(original_state(plain), root / "theirs.safetensors")
        run("convert", "--base", root / "theirs.safetensors", "--config", base, "--out", root / "ours")
        check_same(load(root / "ours").state_dict(), plain)
        print("single files: equal in both directions, also by from_single_file")


def main() -> None:
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir(parents=True)
    original_keys()
    lora_files(original_state(transformer().state_dict()))
    peft_directories()
    lycoris_files()


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2])
    else:
        main()
