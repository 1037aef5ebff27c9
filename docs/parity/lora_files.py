"""LoRA files of several networks, as diffusers and kohya's scripts write them, and what diffusers makes of them.

Writes crates/soda-cli/tests/fixtures/lora/{sd15,sdxl}, which tests/interop.rs reads: files with parts for the UNet and
the text encoders, and in expected.safetensors the text states of a prompt and the noise predicted with them after
`load_lora_weights`, at scales 1 and 0.5, and of two files at once. sd15 is the bundled model, sdxl the tiny
one of pipelines.py.

    pip install torch diffusers transformers peft safetensors pillow
    python docs/parity/lora_files.py
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel

sys.path.append(str(Path(__file__).parent))
from models import value
from pipelines import parts

del CLIPTextModel.text_model  # of pipelines.py; LoRA files are loaded by whether there is one
ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "crates/soda-cli/tests/fixtures/lora"
PROMPT, SIDE, TIME = "a red mug on a beach", 64, 500
ROWS = 8  # the text states of the first tokens; the others are those of the padding
SCALES = [1.0, 0.5]
BOTH = [("diffusers", 0.7), ("kohya", 0.4)]

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2."
LAYER = "encoder.layers.1."
CONV = "down_blocks.0.resnets.0.conv1"
UNET = [ATTENTION + "to_q", ATTENTION + "to_k", ATTENTION + "to_out.0"]
TEXT = [LAYER + name for name in ["self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]]


def sd15():
    base = ROOT / "examples/toybox/base"
    return StableDiffusionPipeline.from_pretrained(base, safety_checker=None, torch_dtype=torch.float32)


def sdxl():
    return StableDiffusionXLPipeline(**parts("sdxl"))


FAMILIES = {
    "sd15": (sd15, {"unet": UNET + [CONV], "text_encoder": TEXT}),
    "sdxl": (sdxl, {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT + ["text_projection"]}),
}


def network(pipe, component):
    return getattr(pipe, component)


def module(pipe, component: str, target: str) -> str:
    """transformers 5.6 and later have no level `text_model` in `CLIPTextModel`, but in the class with a projection."""
    wrapped = hasattr(network(pipe, component), "text_model") and target != "text_projection"
    return "text_model." * wrapped + target


def factors(name: str, w: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`A` and `B` whose product moves a layer by about a tenth."""
    a, b = (rank, *w.shape[1:]), (w.shape[0], rank, *[1] * (w.dim() - 2))
    return value(f"{name}.a", *a) * (w[0].numel() * rank) ** -0.5, value(f"{name}.b", *b) * 0.3


def config(pipe, component: str, targets: list[str]) -> LoraConfig:
    """An alpha that is not the rank, and one layer with others: nothing in the tensors says it."""
    targets = [module(pipe, component, target) for target in targets]
    odd = targets[2]
    return LoraConfig(r=2, lora_alpha=3, rank_pattern={odd: 3}, alpha_pattern={odd: 4}, target_modules=targets)


def fill(model, name: str) -> None:
    for key, p in model.named_parameters():
        if "lora_" in key:
            p.data = value(f"{name}.{key}", *p.shape) * (0.3 if "lora_B" in key else p[0].numel() ** -0.5)


def portable(fields: dict) -> dict:
    """A configuration without what differs from run to run: a path, and the order of a set."""
    return fields | {"base_model_name_or_path": None, "target_modules": sorted(fields["target_modules"])}


def diffusers_file(pipe, networks, path: Path) -> None:
    """As diffusers' training scripts save, with the configurations in the metadata."""
    layers, models = {}, {}
    for component, targets in networks.items():
        model = models[component] = network(pipe, component)
        model.add_adapter(config(pipe, component, targets))
        fill(model, "diffusers." + component)
        state = get_peft_model_state_dict(model)
        # The scripts always convert, which leaves convolutions as they are; a UNet with both is not read again.
        if component != "unet" or CONV not in targets:
            state = convert_state_dict_to_diffusers(state)
        layers[component + "_lora_layers"] = state
    metadata = {name: portable(fields) for name, fields in _collate_lora_metadata(models).items()}
    pipe.save_lora_weights(path.parent, weight_name=path.name, **layers, **metadata)


def kohya_file(pipe, networks, path: Path) -> None:
    """As kohya's scripts name them. diffusers keeps one alpha a network, so there is one."""
    first = "lora_te1_" if "text_encoder_2" in networks else "lora_te_"
    prefixes = {"unet": "lora_unet_", "text_encoder": first, "text_encoder_2": "lora_te2_"}
    out = {}
    for component, targets in networks.items():
        for index, target in enumerate(targets):
            w = network(pipe, component).get_submodule(module(pipe, component, target)).weight
            a, b = factors(f"kohya.{component}.{target}", w, 2 + index % 2)
            level = "text_model." if target.startswith(LAYER) else ""
            name = prefixes[component] + (level + target).replace(".", "_")
            out |= {name + ".lora_down.weight": a, name + ".lora_up.weight": b, name + ".alpha": torch.tensor(3.0)}
    save_file(out, path, {"ss_network_module": "networks.lora"})


def older_file(pipe, networks, path: Path) -> None:
    """As diffusers wrote before it used PEFT: attention as processors, the rest of a text encoder as linear layers."""
    attention = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_out.0": "to_out_lora"}
    attention = {ATTENTION + new: f"{ATTENTION}processor.{old}" for new, old in attention.items()}
    text = {"self_attn.q_proj": "self_attn.to_q_lora", "self_attn.out_proj": "self_attn.to_out_lora"}
    text |= {f"mlp.{name}": f"mlp.{name}.lora_linear_layer" for name in ["fc1", "fc2"]}
    text = {LAYER + new: f"text_model.{LAYER}{old}" for new, old in text.items()}
    names = attention | text
    out = {}
    for component, targets in networks.items():
        for target in targets:
            w = network(pipe, component).get_submodule(module(pipe, component, target)).weight
            a, b = factors(f"older.{component}.{target}", w, 2)
            name = f"{component}.{names.get(target, target + '.lora')}"
            out |= {name + ".down.weight": a, name + ".up.weight": b}
    save_file(out, path, {"format": "pt"})


def peft_directories(make, networks, folder: Path) -> None:
    """A directory for each network, by PEFT itself."""
    pipe = make()
    for component, targets in networks.items():
        model = get_peft_model(network(pipe, component), config(pipe, component, targets))
        fill(model, "peft." + component)
        model.save_pretrained(folder / component)
        (folder / component / "README.md").unlink(missing_ok=True)
        written = folder / component / "adapter_config.json"
        written.write_text(json.dumps(portable(json.loads(written.read_text())), indent=2) + "\n")


def outputs(pipe, name: str, out: dict) -> None:
    xl = hasattr(pipe, "text_encoder_2")
    more = {} if xl else {"num_images_per_prompt": 1, "device": "cpu"}
    text, _, *pooled = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, **more)
    added = {}
    if xl:
        pooled = out[name + ".pooled"] = pooled[0]
        sizes = torch.tensor([[SIDE, SIDE, 0.0, 0, SIDE, SIDE]])
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    out[name + ".text"] = text[:, :ROWS]
    out[name + ".noise"] = pipe.unet(out["sample"], torch.tensor([TIME]), text, **added).sample


def family(name: str) -> None:
    make, networks = FAMILIES[name]
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    side = make().unet.config.sample_size
    out = {"sample": value("sample", 1, 4, side, side)}
    outputs(make(), "base", out)

    for case, write in {"diffusers": diffusers_file, "kohya": kohya_file, "older": older_file}.items():
        write(make(), networks, folder / f"{case}.safetensors")
        pipe = make()
        pipe.load_lora_weights(folder, weight_name=f"{case}.safetensors", adapter_name=case)
        for component, targets in networks.items():
            loaded = [k for k, _ in network(pipe, component).named_parameters() if ".lora_A." in k]
            assert len(loaded) == len(targets), (case, component, loaded)
        for scale in SCALES:
            pipe.set_adapters(case, scale)
            outputs(pipe, f"{case}.{scale:g}", out)

    pipe = make()
    for case, _ in BOTH:
        pipe.load_lora_weights(folder, weight_name=f"{case}.safetensors", adapter_name=case)
    pipe.set_adapters([case for case, _ in BOTH], [weight for _, weight in BOTH])
    outputs(pipe, "both", out)

    peft_directories(make, networks, folder / "peft")
    pipe = make()
    for component in networks:
        PeftModel.from_pretrained(network(pipe, component), str(folder / "peft" / component))
    outputs(pipe, "peft.1", out)

    save_file({key: tensor.contiguous() for key, tensor in out.items()}, folder / "expected.safetensors")
    for key, got in out.items():
        case, _, kind = key.rpartition(".")
        if case:
            base = out[f"base.{kind}"]
            print(f"{name} {key:20} moved by {((got - base).norm() / base.norm()).item():.3f}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for name in FAMILIES:
        family(name)
