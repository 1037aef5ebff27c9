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

# The begin of a hash of checksums, which new files have.
OF_CHECKSUMS = "2-"
# The words that a checksum adds at once.
_PART = 1 << 22


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


def base_hash(weights, like=OF_CHECKSUMS):
    """The hash of weights by path, as the `soda` binary has it, of the kind of the hash `like`.

    It is `2-` and the SHA-256 of paths, shapes `[in, out]` and checksums of the values in f32. The hash of earlier files
    is the SHA-256 of the values themselves. `weights` yields pairs of a path and a numpy array `[out, in]` or
    `[out, in, kh, kw]`, sorted by path.
    """
    of_checksums = like.startswith(OF_CHECKSUMS)
    digest = hashlib.sha256()
    for path, weight in weights:
        matrix = np.ascontiguousarray(weight.reshape(weight.shape[0], -1).T, dtype="<f4")
        line = f"{path} {matrix.shape[0]} {matrix.shape[1]}"
        if of_checksums:
            digest.update(f"{line} {checksum(matrix):016x}\n".encode())
        else:
            digest.update(f"{line}\n".encode())
            digest.update(matrix.tobytes())
    return (OF_CHECKSUMS if of_checksums else "") + digest.hexdigest()


def checksum(matrix):
    """The sum of SplitMix64's finalizer over `2**32 * i + word` of the words of 32 bits of an array, mod 2**64."""
    words = matrix.reshape(-1).view("<u4")
    total = np.uint64(0)
    for start in range(0, len(words), _PART):
        part = words[start : start + _PART].astype(np.uint64)
        x = (np.arange(start, start + len(part), dtype=np.uint64) << np.uint64(32)) | part
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        # A reduction wraps around; a sum of two numbers would warn.
        total = np.add.reduce(np.append(x ^ (x >> np.uint64(31)), total))
    return int(total)
