"""Which weights an adapter belongs to, and the hash of a base model over them."""

import hashlib
import re

import numpy as np

from .errors import AdapterError

_PROJECTIONS = r"to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out|to_qkv_mlp_proj"
_ATTENTION = rf"{_PROJECTIONS}|attn\.to_out"
_TEXT = r"self_attn\.(q_proj|k_proj|v_proj|out_proj)"

# The presets of targets: a pattern over paths, and the number of axes of a selected weight.
PRESETS = {
    "attention": (rf"\.({_ATTENTION})\.weight$", None),
    "cross-attention": (r"\.attn2\.(to_q|to_k|to_v|to_out\.0)\.weight$", None),
    "attention+ff": (rf"\.({_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2|linear_in|linear_out|feed_forward\.w[123])\.weight$", None),
    "peft-image-gen": (rf"\.({_PROJECTIONS}|linear_in|linear_out)\.weight$", None),
    "all-linear": (r"\.weight$", 2),
    "conv": (r"\.weight$", 4),
    "text-attention": (rf"\.{_TEXT}\.weight$", None),
    "text-attention+mlp": (rf"\.({_TEXT}|mlp\.(fc1|fc2))\.weight$", None),
}


def file_path(name):
    """The path that files have for a parameter: transformers 5 leaves out a prefix of the text encoder."""
    return re.sub(r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1.", name)


def select(targets, shapes):
    """The sorted paths that the targets select. `shapes` has the shapes of all weights of a network by path."""
    selected = set()
    for target in targets:
        pattern, axes = PRESETS.get(target, (target, None))
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise AdapterError(f"the target `{target}` is no regular expression: {error}") from None
        for path, shape in shapes.items():
            # A table of embeddings has two axes, and is no factor of a product.
            fits = axes is None or (len(shape) == axes and not path.endswith("_embedding.weight"))
            if fits and expression.search(path):
                selected.add(path)
    return sorted(selected)


def base_hash(weights):
    """The SHA-256 of weights by path: of path, shape `[in, out]` and values in f32, as the `soda` binary has it.

    `weights` yields pairs of a path and a numpy array `[out, in]` or `[out, in, kh, kw]`, sorted by path.
    """
    digest = hashlib.sha256()
    for path, weight in weights:
        matrix = np.ascontiguousarray(weight.reshape(weight.shape[0], -1).T, dtype="<f4")
        digest.update(f"{path} {matrix.shape[0]} {matrix.shape[1]}\n".encode())
        digest.update(matrix.tobytes())
    return digest.hexdigest()
