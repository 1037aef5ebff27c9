"""Reference vectors for the transformer of Z-Image: outputs and gradients of two tiny models.

Writes crates/soda-models/tests/fixtures/z-image{,-uneven}.safetensors, which tests/z_image.rs compares
with. A file holds a config, the keys of the checkpoint, the outputs and the gradients of some weights.
The weights and the inputs are a formula of their name, as in ../models.py. The captions of a batch differ
in length, and images need padding or not.

    pip install torch diffusers transformers safetensors
    python docs/parity/z_image/transformer.py
"""

import sys
from pathlib import Path

import torch
from diffusers import ZImageTransformer2DModel

sys.path.append(str(Path(__file__).parents[1]))
from models import fill, value, write

CONFIGS = {
    "z-image": {
        "in_channels": 4,
        "dim": 24,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 10,
        "axes_dims": [4, 4, 4],
        "axes_lens": [640, 64, 64],
    },
    # Heads of 14 channels, axes of different widths, an MLP width that is truncated.
    "z-image-uneven": {
        "in_channels": 3,
        "dim": 56,
        "n_layers": 1,
        "n_refiner_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "norm_eps": 1e-3,
        "cap_feat_dim": 7,
        "rope_theta": 100.0,
        "t_scale": 700.0,
        "axes_dims": [2, 8, 4],
        "axes_lens": [640, 64, 64],
    },
}

# Height and width of the latents, and the number of tokens of each caption.
INPUTS = [
    (6, 10, [7, 40]),
    (8, 16, [64, 1, 33]),
]
TIMES = torch.tensor([1000.0, 10.5, 500.0])

GRADS = [
    "all_x_embedder.2-1.weight",
    "all_final_layer.2-1.linear.weight",
    "all_final_layer.2-1.adaLN_modulation.1.bias",
    "noise_refiner.0.attention.to_q.weight",
    "noise_refiner.0.adaLN_modulation.0.bias",
    "context_refiner.0.attention.norm_k.weight",
    "context_refiner.0.attention.to_v.weight",
    "context_refiner.0.ffn_norm2.weight",
    "t_embedder.mlp.2.bias",
    "cap_embedder.0.weight",
    "cap_embedder.1.weight",
    "layers.0.attention.to_k.weight",
    "layers.0.attention.to_out.0.weight",
    "layers.0.attention.norm_q.weight",
    "layers.0.attention_norm1.weight",
    "layers.0.adaLN_modulation.0.bias",
    "x_pad_token",
    "cap_pad_token",
]


def transformer(name: str) -> None:
    model = fill(ZImageTransformer2DModel(**CONFIGS[name]))
    config = dict(model.config)
    tensors, loss = {}, 0
    for index, (height, width, lengths) in enumerate(INPUTS):
        count, most = len(lengths), max(lengths)
        sample = value(f"sample.{index}", count, config["in_channels"], height, width)
        text = value(f"text.{index}", count, most, config["cap_feat_dim"])
        captions = [states[:length] for states, length in zip(text, lengths)]
        # The call and the sign are those of the pipeline.
        time = (1000 - TIMES[:count]) / 1000
        out = model(list(sample.unsqueeze(2)), time, captions).sample
        out = -torch.stack(out).squeeze(2)
        loss = loss + (out * value(f"loss.{index}", *out.shape)).sum()
        tensors[f"out.{index}"] = out
    loss.backward()
    write(name, model, config, tensors, GRADS)


if __name__ == "__main__":
    for name in CONFIGS:
        transformer(name)
