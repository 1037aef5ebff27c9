"""OFT and BOFT: block-diagonal rotations from packed skew-symmetric matrices, in PEFT's convention.

The exact rotation is `(I - Q)(I + Q)⁻¹`, and the Neumann form `(I + Q)(I + Q + … + Q^p)` with
`p = max(terms - 2, 2)`, which turns the other way. A truncated series `R` is not exactly orthogonal: at a strength
it is `Pᵗ + t (R - P)` with the nearest rotation `P`.
"""

import math

import numpy as np

from ..arrays import of
from . import permutations
from .algebra import blocks_left, cayley, polar, rotation_power


def nearest_divisor(width, wanted):
    """The divisor of `width` nearest to `wanted`, the smaller of two at one distance."""
    lower = next(size for size in range(min(wanted, width), 0, -1) if width % size == 0)
    higher = next((size for size in range(wanted, width + 1) if width % size == 0), width)
    return lower if abs(wanted - lower) <= abs(wanted - higher) else higher


class BlockRotation:
    """A block-diagonal rotation of a side of `width` entries."""

    def __init__(self, tensors, name, width, size, cayley_form, share=False, constraint=None):
        self.size, self.form = size, cayley_form
        self.copies = width // size if share else 1
        trained = 1 if share else width // size
        self.skew = tensors.take(name, (trained, size * (size - 1) // 2))
        self.bound = None if constraint is None else constraint / math.sqrt(trained)

    def blocks(self, like):
        """All blocks, `[blocks, n, n]`."""
        xp = of(like)
        n, packed = self.size, xp.array(self.skew, like)
        entries = packed.shape[1]
        rows, cols = np.triu_indices(n, 1)
        sources = np.full((n, n), 2 * entries)
        sources[rows, cols] = np.arange(entries)
        sources[cols, rows] = entries + np.arange(entries)
        all_entries = xp.concat([packed, -packed, xp.zeros((packed.shape[0], 1), like)], 1)
        q = all_entries[:, xp.index(sources.reshape(-1), like)].reshape(packed.shape[0], n, n)
        if self.bound is not None:
            norms = xp.sqrt((q * q).sum(1).sum(1))
            # A norm within the bound stays, also a norm of zero.
            scale = self.bound / xp.maximum(norms, xp.ones(tuple(norms.shape), like) * self.bound)
            q = q * scale[:, None, None]
        if self.form["form"] == "exact":
            blocks = cayley(-q)
        else:
            identity = xp.eye(n, like)
            series = identity
            for _ in range(max(self.form["terms"] - 2, 2)):
                series = identity + q @ series
            blocks = (q + identity) @ series
        return xp.concat([blocks] * self.copies, 0)

    def at_strength(self, like, t):
        """The blocks at the strength `t`."""
        xp = of(like)
        blocks = self.blocks(like)
        if t == 1.0:
            return blocks
        exact = xp.double(blocks)
        nearest = polar(exact)
        return xp.array(rotation_power(nearest, t) + (exact - nearest) * t, like)


class Oft:
    """`R w R'`."""

    def __init__(self, settings, path, tensors, shape, window):
        def side(name, width):
            size = nearest_divisor(width, settings["block_size"])
            form, share, bound = settings["cayley"], settings["block_share"], settings["constraint"]
            return BlockRotation(tensors, f"{name}.skew", width, size, form, share, bound)

        self.input = side("rotation", shape[0]) if settings["side"] != "output" else None
        self.output = side("output_rotation", shape[1]) if settings["side"] != "input" else None

    def basis(self, w):
        return None

    def apply(self, w, t, basis):
        if self.input:
            w = blocks_left(self.input.at_strength(w, t), w)
        if self.output:
            w = blocks_left(of(w).swap(self.output.at_strength(w, t)), w.T).T
        return w


class Boft:
    """`B_m ⋯ B_1 w diag(s)` with `B_i = P_i diag(R_1, R_2, …) P_iᵀ`."""

    def __init__(self, settings, path, tensors, shape, window):
        width, output = shape
        size = nearest_divisor(width, settings["block_size"])
        # Level i pairs halves of blocks, which needs blocks of even size and 2^i blocks.
        count = width // size
        most = 0 if size % 2 else (count & -count).bit_length() - 1
        self.levels = []
        for level in range(min(settings["levels"], most + 1)):
            rotation = BlockRotation(tensors, f"levels.{level}.rotation.skew", width, size, {"form": "exact"})
            self.levels.append((rotation, permutations.butterfly(width, size, level) if level else None))
        self.scale = tensors.take("scale", (output,))

    def basis(self, w):
        return None

    def apply(self, w, t, basis):
        xp = of(w)
        for rotation, order in self.levels:
            blocks = rotation.at_strength(w, t)
            if order is None:
                w = blocks_left(blocks, w)
                continue
            back = xp.index(permutations.inverse(order), w)
            w = blocks_left(blocks, w[back])[xp.index(order, w)]
        return w * ((xp.array(self.scale, w) - 1.0) * t + 1.0)[None, :]
