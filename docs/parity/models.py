"""Reference vectors for the networks of every family: UNet, autoencoder, text encoders, DINOv2.

Writes crates/soda-models/tests/fixtures/{unet,vae,text,vit}-*.safetensors, which tests/families.rs
compares with. Each file holds a tiny config, the keys of the checkpoint, the inputs, the outputs
and the gradients of some weights. The weights themselves are not stored: they are a formula of
their key (`weight` below), which the test computes too.

    pip install torch diffusers transformers safetensors
    python docs/parity/models.py
"""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "crates/soda-models/tests/fixtures"


def uniform(name: str, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1), exact in f32: SplitMix64 from the FNV-1a hash of `name`."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A matrix or kernel that keeps the scale of its input, a norm near one, a bias near zero."""
    u = uniform(name, math.prod(shape)).reshape(shape)
    if len(shape) >= 2:
        u = u * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    elif name.endswith("weight"):
        u = np.float32(1) + np.float32(0.2) * u
    else:
        u = np.float32(0.2) * u
    return torch.from_numpy(u)


def value(name: str, *shape: int) -> torch.Tensor:
    """An input: uniform of unit variance."""
    return torch.from_numpy(uniform(name, math.prod(shape)).reshape(shape) * np.float32(math.sqrt(3)))


def fill(model: torch.nn.Module) -> torch.nn.Module:
    state = {key: weight(key, tuple(old.shape)) for key, old in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def write(name: str, model: torch.nn.Module, config: dict, tensors: dict, grads: list[str]) -> None:
    """Gradients are those of a loss that was already sent backwards."""
    parameters = dict(model.named_parameters())
    for key in grads:
        tensors[f"grad.{key}"] = parameters[key].grad
    keys = {key: list(value.shape) for key, value in model.state_dict().items()}
    metadata = {"config": json.dumps(config), "keys": json.dumps(keys, separators=(",", ":"))}
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    path = FIXTURES / f"{name}.safetensors"
    save_file(tensors, path, metadata)
    print(f"{path.name}: {len(keys)} weights, {path.stat().st_size} bytes")


# --- UNets -----------------------------------------------------------------------------------

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def unet_config(attention: list[bool], **fields) -> dict:
    """What the families share; `attention` says which resolutions have transformers."""
    down = [(CROSS if a else PLAIN).format("Down") for a in attention]
    up = [(CROSS if a else PLAIN).format("Up") for a in reversed(attention)]
    return {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": [16, 24, 32],
        "norm_num_groups": 4,
        "layers_per_block": 1,
        **fields,
    }


UNETS = {
    "unet-sd15": unet_config(
        [True, True, False], attention_head_dim=4, cross_attention_dim=24, layers_per_block=2
    ),
    "unet-inpaint": unet_config(
        [True, False, False], attention_head_dim=2, cross_attention_dim=24, in_channels=9
    ),
    "unet-sd21": unet_config(
        [True, True, False],
        attention_head_dim=[2, 3, 4],
        cross_attention_dim=32,
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "unet-sdxl": unet_config(
        [False, True, True],
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=32,
        transformer_layers_per_block=[1, 2, 3],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    ),
    "unet-uneven": unet_config(
        [False, True, False],
        attention_head_dim=[1, 6, 2],
        cross_attention_dim=[20, 20, 20],
        transformer_layers_per_block=2,
        layers_per_block=[1, 2, 1],
        use_linear_projection=True,
        flip_sin_to_cos=False,
        freq_shift=1,
    ),
}

# Sizes that do not halve evenly, and are not square.
LATENTS = [(2, 8, 8), (2, 9, 13)]


def unet(name: str) -> None:
    config = UNETS[name]
    model = fill(UNet2DConditionModel(**config))
    width = config["cross_attention_dim"]
    width = width[0] if isinstance(width, list) else width
    tensors, loss = {}, 0
    for index, (batch, height, rest) in enumerate(LATENTS):
        sample = value(f"sample.{index}", batch, config["in_channels"], height, rest)
        time = torch.tensor([999.0, 10.5])[:batch]
        text = value(f"text.{index}", batch, 7, width)
        added = {}
        if config.get("addition_embed_type"):
            added["text_embeds"] = value(f"pooled.{index}", batch, 20)
            added["time_ids"] = torch.tensor([[1024.0, 768, 0, 32, 1024, 1024], [64, 64, 5, 0, 8, 9]])
        out = model(sample, time, text, added_cond_kwargs=added).sample
        loss = loss + (out * value(f"loss.{index}", *out.shape)).sum()
        tensors[f"out.{index}"] = out
    loss.backward()
    block = 1 if name in ("unet-sdxl", "unet-uneven") else 0
    attention = f"down_blocks.{block}.attentions.0"
    grads = [
        "conv_in.weight",
        "time_embedding.linear_1.weight",
        f"{attention}.norm.weight",
        f"{attention}.proj_in.weight",
        f"{attention}.transformer_blocks.0.attn1.to_q.weight",
        f"{attention}.transformer_blocks.0.attn2.to_k.weight",
        f"{attention}.transformer_blocks.0.attn2.to_out.0.bias",
        f"{attention}.transformer_blocks.0.norm2.bias",
        f"{attention}.transformer_blocks.0.ff.net.0.proj.bias",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_v.weight",
        "up_blocks.2.resnets.0.conv_shortcut.weight",
        "up_blocks.1.resnets.0.time_emb_proj.bias",
        "down_blocks.0.downsamplers.0.conv.bias",
        "up_blocks.0.upsamplers.0.conv.bias",
        "conv_out.weight",
    ]
    if config.get("addition_embed_type"):
        grads.append("add_embedding.linear_1.weight")
    write(name, model, dict(model.config), tensors, grads)


# --- Autoencoders ----------------------------------------------------------------------------

VAES = {
    "vae-sd": {"scaling_factor": 0.18215, "layers_per_block": 1},
    "vae-sdxl": {"scaling_factor": 0.13025, "layers_per_block": 2, "force_upcast": True},
}


def vae(name: str) -> None:
    config = {
        "block_out_channels": [8, 12, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "norm_num_groups": 4,
        "sample_size": 16,
        **VAES[name],
    }
    model = fill(AutoencoderKL(**config))
    picture = value("picture", 2, 3, 24, 36)
    latents = value("latents", 2, 4, 5, 7)
    posterior = model.encode(picture).latent_dist
    decoded = model.decode(latents).sample
    loss = (decoded * value("loss.decoded", *decoded.shape)).sum()
    loss = loss + (posterior.mean * value("loss.mean", *posterior.mean.shape)).sum()
    loss.backward()
    tensors = {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": decoded}
    with torch.no_grad():
        # Tiles of 16 pixels (4 latents) that overlap by a quarter, one row and column cut.
        model.enable_tiling()
        tensors["tiled.mean"] = model.encode(picture).latent_dist.mean
        tensors["tiled.decoded"] = model.decode(latents).sample
    grads = [
        "encoder.conv_in.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.weight",
        "encoder.mid_block.attentions.0.to_q.weight",
        "decoder.mid_block.attentions.0.to_out.0.weight",
        "decoder.up_blocks.1.resnets.0.norm1.weight",
        "decoder.conv_out.weight",
        "post_quant_conv.weight",
    ]
    write(name, model, dict(model.config), tensors, grads)


# --- Text encoders ---------------------------------------------------------------------------

TEXTS = {
    # Old configs call the end token 2, whatever it is: the largest id marks the end.
    "text-sd15": (CLIPTextModel, {"hidden_act": "quick_gelu", "eos_token_id": 2}),
    "text-sd21": (CLIPTextModel, {"hidden_act": "gelu", "eos_token_id": 49}),
    "text-bigg": (
        CLIPTextModelWithProjection,
        {"hidden_act": "gelu", "eos_token_id": 2, "projection_dim": 20},
    ),
    "text-new-eos": (
        CLIPTextModelWithProjection,
        {"hidden_act": "quick_gelu", "eos_token_id": 40, "projection_dim": 12},
    ),
}

IDS = [[48, 3, 5, 40, 7, 49, 49, 49], [48, 30, 49, 0, 0, 40, 0, 0]]


def text(name: str) -> None:
    kind, fields = TEXTS[name]
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=3,
        max_position_embeddings=10,
        bos_token_id=48,
        architectures=[kind.__name__],
        **fields,
    )
    model = fill(kind(config))
    ids = torch.tensor(IDS)
    out = model(ids, output_hidden_states=True)
    tensors = {"ids": ids, "last": out.last_hidden_state}
    for skip in [1, 2]:
        tensors[f"hidden.{skip}"] = out.hidden_states[-1 - skip]
        norm = getattr(model, "text_model", model).final_layer_norm
        tensors[f"skipped.{skip}"] = norm(out.hidden_states[-1 - skip])
    pooled = out.text_embeds if kind is CLIPTextModelWithProjection else out.pooler_output
    tensors["pooled"] = pooled
    loss = (out.last_hidden_state * value("loss.last", *out.last_hidden_state.shape)).sum()
    (loss + (pooled * value("loss.pooled", *pooled.shape)).sum()).backward()
    keys = [key for key, _ in model.named_parameters()]
    wanted = ["layers.0.self_attn.q_proj.weight", "layers.3.mlp.fc1.bias", "position_embedding.weight"]
    wanted += ["text_projection.weight"] if kind is CLIPTextModelWithProjection else []
    grads = [key for key in keys if any(key.endswith(w) for w in wanted)]
    write(name, model, config.to_dict(), tensors, grads)


# --- DINOv2 ----------------------------------------------------------------------------------


def dinov2(name: str, kind: type, config) -> None:
    """The weights go through a file, whose keys are not those of transformers 5 in memory."""
    with tempfile.TemporaryDirectory() as folder:
        kind(config).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        keys = {key: list(old.shape) for key, old in load_file(path).items()}
        save_file({key: weight(key, tuple(shape)) for key, shape in keys.items()}, path, {"format": "pt"})
        model = kind.from_pretrained(folder).eval()
    tensors, loss = {}, 0
    for index, (height, width) in enumerate([(70, 70), (84, 112), (42, 56)]):
        out = model(value(f"pixels.{index}", 2, 3, height, width)).last_hidden_state
        loss = loss + (out * value(f"loss.{index}", *out.shape)).sum()
        tensors[f"out.{index}"] = out
    loss.backward()
    parameters = dict(model.named_parameters())
    today = [(".attention.attention.query.", ".attention.q_proj."), (".weights_out.", ".down_proj.")]
    for key in [
        "embeddings.cls_token",
        "embeddings.register_tokens",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.bias",
        "encoder.layer.0.layer_scale1.lambda1",
        "encoder.layer.1.attention.attention.query.weight",
        "encoder.layer.1.norm2.weight",
        "encoder.layer.2.mlp.fc1.bias",
        "encoder.layer.2.mlp.weights_out.weight",
        "encoder.layer.2.layer_scale2.lambda1",
    ]:
        if key not in keys:
            continue
        old = key
        for old_part, new_part in today:
            key = key.replace(old_part, new_part) if key not in parameters else key
        tensors[f"grad.{old}"] = parameters[key].grad
    metadata = {"config": json.dumps(config.to_dict()), "keys": json.dumps(keys, separators=(",", ":"))}
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    path = FIXTURES / f"{name}.safetensors"
    save_file(tensors, path, metadata)
    print(f"{path.name}: {len(keys)} weights, {path.stat().st_size} bytes")


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    for name in UNETS:
        unet(name)
    for name in VAES:
        vae(name)
    for name in TEXTS:
        text(name)
    sizes = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=70, patch_size=14)
    dinov2("vit-dinov2", Dinov2Model, Dinov2Config(**sizes))
    giant = Dinov2WithRegistersConfig(**sizes, num_register_tokens=2, use_swiglu_ffn=True)
    dinov2("vit-dinov2-registers", Dinov2WithRegistersModel, giant)


if __name__ == "__main__":
    main()
