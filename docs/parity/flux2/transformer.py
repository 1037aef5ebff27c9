"""Reference vectors for the transformer of FLUX.2 with uneven sizes.

Writes crates/soda-models/tests/fixtures/flux2-uneven.safetensors, which tests/toyflux.rs compares
with. The file holds a tiny config, the keys of the checkpoint and the outputs. The weights and
the inputs are a formula of their name, as in ../models.py.

The transformer is written here in NumPy, in double precision, after diffusers'
transformer_flux2.py. It first computes the vectors that diffusers itself computed for the bundled
model (examples/toyflux/reference), and fails if they differ.

    pip install numpy safetensors
    python docs/parity/flux2/transformer.py
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
FIXTURE = ROOT / "crates/soda-models/tests/fixtures/flux2-uneven.safetensors"
TOYFLUX = ROOT / "examples/toyflux"

UNEVEN = {
    "_class_name": "Flux2Transformer2DModel",
    "patch_size": 1,
    "in_channels": 12,
    "out_channels": None,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 14,
    "num_attention_heads": 3,
    "joint_attention_dim": 10,
    "timestep_guidance_channels": 6,
    # 42 * 2.7 = 113.4, which is truncated.
    "mlp_ratio": 2.7,
    "axes_dims_rope": [2, 4, 6, 2],
    "rope_theta": 100,
    "eps": 1e-5,
    "guidance_embeds": False,
}


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


def weight(name: str, shape: list[int]) -> np.ndarray:
    u = uniform(name, math.prod(shape)).reshape(shape)
    if len(shape) >= 2:
        return u * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    return np.float32(1) + np.float32(0.2) * u


def value(name: str, *shape: int) -> np.ndarray:
    return uniform(name, math.prod(shape)).reshape(shape) * np.float32(math.sqrt(3))


def shapes(config: dict) -> dict[str, list[int]]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    inner, head = int(width * config["mlp_ratio"]), [config["attention_head_dim"]]
    square = [width, width]
    keys = {
        "x_embedder": [width, config["in_channels"]],
        "context_embedder": [width, config["joint_attention_dim"]],
        "time_guidance_embed.timestep_embedder.linear_1": [width, config["timestep_guidance_channels"]],
        "time_guidance_embed.timestep_embedder.linear_2": square,
        "double_stream_modulation_img.linear": [6 * width, width],
        "double_stream_modulation_txt.linear": [6 * width, width],
        "single_stream_modulation.linear": [3 * width, width],
        "norm_out.linear": [2 * width, width],
        "proj_out": [config["in_channels"], width],
    }
    for i in range(config["num_layers"]):
        block = f"transformer_blocks.{i}"
        for name in ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]:
            keys[f"{block}.attn.{name}"] = square
        for name in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]:
            keys[f"{block}.attn.{name}"] = head
        for name in ["ff", "ff_context"]:
            keys[f"{block}.{name}.linear_in"] = [2 * inner, width]
            keys[f"{block}.{name}.linear_out"] = [width, inner]
    for i in range(config["num_single_layers"]):
        block = f"single_transformer_blocks.{i}.attn"
        keys[f"{block}.to_qkv_mlp_proj"] = [3 * width + 2 * inner, width]
        keys[f"{block}.to_out"] = [width, width + inner]
        keys[f"{block}.norm_q"] = keys[f"{block}.norm_k"] = head
    return {f"{key}.weight": shape for key, shape in keys.items()}


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(x):
    a, b = np.split(x, 2, axis=-1)
    return silu(a) * b


class Transformer:
    def __init__(self, config: dict, weights: dict[str, np.ndarray]):
        self.config = config
        self.weights = {key: value.astype(np.float64) for key, value in weights.items()}
        self.heads, self.eps = config["num_attention_heads"], config["eps"]

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)

    def heads_of(self, name, x):
        """Splits the heads and applies the RMS norm `name`."""
        x = x.reshape(*x.shape[:2], self.heads, -1)
        if name is None:
            return x
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps) * self.weights[f"{name}.weight"]

    def attention(self, q, k, v, angles):
        def rotated(x):
            even, odd = x[..., 0::2], x[..., 1::2]
            cos, sin = (np.cos(angles)[None, :, None], np.sin(angles)[None, :, None])
            pairs = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
            return pairs.reshape(x.shape)

        scores = np.einsum("bnhd,bmhd->bhnm", rotated(q), rotated(k)) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        out = np.einsum("bhnm,bmhd->bnhd", scores, v)
        return out.reshape(*out.shape[:2], -1)

    def angles(self, words, height, width):
        text = [(0, 0, 0, place) for place in range(words)]
        image = [(0, row, column, 0) for row in range(height) for column in range(width)]
        positions, parts = np.array(text + image, dtype=np.float64), []
        for axis, channels in enumerate(self.config["axes_dims_rope"]):
            frequencies = 1.0 / self.config["rope_theta"] ** (np.arange(0, channels, 2) / channels)
            parts.append(np.outer(positions[:, axis], frequencies))
        return np.concatenate(parts, axis=-1)

    def modulation(self, name, time, sets):
        parts = np.split(self.linear(f"{name}.linear", silu(time))[:, None], 3 * sets, axis=-1)
        return [parts[3 * i : 3 * i + 3] for i in range(sets)]

    def __call__(self, latents, timestep, text):
        """`latents` are [b, c, h, w], `timestep` [b] is from 0 to 1000."""
        batch, channels, height, width = latents.shape
        words = text.shape[1]
        half = self.config["timestep_guidance_channels"] // 2
        frequencies = np.exp(-math.log(10000) * np.arange(half) / half)
        at = timestep.astype(np.float64)[:, None] * frequencies
        embedder = "time_guidance_embed.timestep_embedder"
        time = self.linear(f"{embedder}.linear_1", np.concatenate([np.cos(at), np.sin(at)], axis=-1))
        time = self.linear(f"{embedder}.linear_2", silu(time))
        of_image = self.modulation("double_stream_modulation_img", time, 2)
        of_text = self.modulation("double_stream_modulation_txt", time, 2)
        (single,) = self.modulation("single_stream_modulation", time, 1)
        angles = self.angles(words, height, width)

        tokens = latents.reshape(batch, channels, -1).transpose(0, 2, 1).astype(np.float64)
        h = self.linear("x_embedder", tokens)
        c = self.linear("context_embedder", text.astype(np.float64))
        for i in range(self.config["num_layers"]):
            block = f"transformer_blocks.{i}"
            attn = f"{block}.attn"
            (shift, scale, gate), (shift2, scale2, gate2) = of_image
            (c_shift, c_scale, c_gate), (c_shift2, c_scale2, c_gate2) = of_text
            n, m = self.norm(h) * (1 + scale) + shift, self.norm(c) * (1 + c_scale) + c_shift
            q, k, v = (
                np.concatenate(
                    [
                        self.heads_of(of_c and f"{attn}.{of_c}", self.linear(f"{attn}.add_{x}_proj", m)),
                        self.heads_of(of_h and f"{attn}.{of_h}", self.linear(f"{attn}.to_{x}", n)),
                    ],
                    axis=1,
                )
                for x, of_c, of_h in [
                    ("q", "norm_added_q", "norm_q"),
                    ("k", "norm_added_k", "norm_k"),
                    ("v", None, None),
                ]
            )
            out = self.attention(q, k, v, angles)
            h = h + gate * self.linear(f"{attn}.to_out.0", out[:, words:])
            c = c + c_gate * self.linear(f"{attn}.to_add_out", out[:, :words])
            n, m = self.norm(h) * (1 + scale2) + shift2, self.norm(c) * (1 + c_scale2) + c_shift2
            h = h + gate2 * self.linear(f"{block}.ff.linear_out", swiglu(self.linear(f"{block}.ff.linear_in", n)))
            inner = swiglu(self.linear(f"{block}.ff_context.linear_in", m))
            c = c + c_gate2 * self.linear(f"{block}.ff_context.linear_out", inner)
        x, size = np.concatenate([c, h], axis=1), h.shape[-1]
        for i in range(self.config["num_single_layers"]):
            attn = f"single_transformer_blocks.{i}.attn"
            shift, scale, gate = single
            both = self.linear(f"{attn}.to_qkv_mlp_proj", self.norm(x) * (1 + scale) + shift)
            q = self.heads_of(f"{attn}.norm_q", both[..., :size])
            k = self.heads_of(f"{attn}.norm_k", both[..., size : 2 * size])
            v = self.heads_of(None, both[..., 2 * size : 3 * size])
            mlp = swiglu(both[..., 3 * size :])
            out = np.concatenate([self.attention(q, k, v, angles), mlp], axis=-1)
            x = x + gate * self.linear(f"{attn}.to_out", out)
        scale, shift = np.split(self.linear("norm_out.linear", silu(time))[:, None], 2, axis=-1)
        x = self.linear("proj_out", self.norm(x[:, words:]) * (1 + scale) + shift)
        return x.transpose(0, 2, 1).reshape(latents.shape)


def check_against_diffusers() -> None:
    config = json.loads((TOYFLUX / "base/transformer/config.json").read_text())
    weights = load_file(TOYFLUX / "base/transformer/diffusion_pytorch_model.safetensors")
    assert {key: list(value.shape) for key, value in weights.items()} == shapes(config)
    transformer = Transformer(config, weights)
    reference = load_file(TOYFLUX / "reference/reference.safetensors")
    for time in ["1.0", "0.7", "0.25", "0.02"]:
        at = np.full(6, 1000 * float(time))
        ours = transformer(reference["latents"], at, reference["prompt_embeds"])
        ours, theirs = ours.reshape(6, 32, -1).transpose(0, 2, 1), reference[f"velocity.{time}"]
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"velocity.{time}: {error:.1e}")
        assert error < 1e-5


def main() -> None:
    check_against_diffusers()
    keys = shapes(UNEVEN)
    transformer = Transformer(UNEVEN, {key: weight(key, shape) for key, shape in keys.items()})
    tensors = {}
    for index, (height, width, words) in enumerate([(3, 5, 7), (4, 1, 1)]):
        latents = value(f"sample.{index}", 2, UNEVEN["in_channels"], height, width)
        text = value(f"text.{index}", 2, words, UNEVEN["joint_attention_dim"])
        out = transformer(latents, np.array([1000.0, 10.5]), text)
        tensors[f"out.{index}"] = np.ascontiguousarray(out, dtype=np.float32)
    metadata = {"config": json.dumps(UNEVEN), "keys": json.dumps(keys, separators=(",", ":"))}
    save_file(tensors, FIXTURE, metadata)
    print(f"{FIXTURE.name}: {len(keys)} weights, {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
