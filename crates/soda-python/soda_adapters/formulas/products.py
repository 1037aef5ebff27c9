"""The methods that add a product or a matrix to the weight: LoRA with PiSSA and DoRA, LoHa, LoKr, whole deltas.

All formulas are on the matrix `w` `[in, out]`, the transposed weight of a linear layer, or a kernel read as
`out x (in kh kw)`.
"""

import math
import re

from ..arrays import of
from .algebra import kron


def longest_match(patterns, path):
    """The value of the longest pattern that matches the path."""
    found = [(len(pattern), value) for pattern, value in patterns.items() if re.search(pattern, path)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


class Lora:
    """`w + s (a b - a₀ b₀)`, normalized to DoRA's magnitudes if they are trained."""

    def __init__(self, settings, path, tensors, shape, window):
        width, output = shape
        rank = longest_match(settings["rank_pattern"], path) or settings["rank"]
        alpha = longest_match(settings["alpha_pattern"], path)
        if alpha is None:
            alpha = rank if settings["alpha"] is None else settings["alpha"]
        self.scale = alpha / (math.sqrt(rank) if settings["rank_stabilized"] else rank)
        self.rank = min(rank, *shape)
        self.a = tensors.take("a", (width, self.rank))
        self.b = tensors.take("b", (self.rank, output))
        self.pissa = settings["init"] == "pissa"
        self.magnitude = tensors.take("magnitude.value", (output,)) if settings["dora"] else None

    def basis(self, w):
        """PiSSA's initial product `s a₀ b₀`: the leading part of the decomposition."""
        if not self.pissa:
            return None
        xp = of(w)
        u, s, vt = xp.svd(xp.double(w))
        u, s, vt = u[:, : self.rank], s[: self.rank], vt[: self.rank]
        return (xp.array(u * s[None, :], w), xp.array(vt, w))

    def apply(self, w, t, basis):
        xp = of(w)
        change = (xp.array(self.a, w) @ xp.array(self.b, w)) * self.scale
        if basis is not None:
            change = change - basis[0] @ basis[1]
        direction = w + change * t
        if self.magnitude is None:
            return direction
        start = xp.sqrt((w * w).sum(0))
        norms = xp.sqrt((direction * direction).sum(0))
        wanted = start + (xp.array(self.magnitude, w) - start) * t
        # An output with all weights zero has no direction and stays zero.
        safe = xp.where(norms == 0, xp.ones(tuple(norms.shape), w), norms)
        gain = xp.where(norms == 0, xp.ones(tuple(norms.shape), w), (wanted - norms) / safe + 1.0)
        return direction * gain[None, :]

    def factors(self, w, t, basis):
        """`a`, `b` with `w + a b`, and the ranks of the two products of PiSSA, or of the one."""
        xp = of(w)
        a, b = xp.array(self.a, w), xp.array(self.b, w) * (self.scale * t)
        if basis is None:
            return a, b, [self.rank]
        return xp.concat([a, basis[0]], 1), xp.concat([b, basis[1] * -t], 0), [self.rank] * 2


class Loha:
    """`w + s ((W1a W1b) ∘ (W2a W2b))ᵀ`."""

    def __init__(self, settings, path, tensors, shape, window):
        width, output = shape
        rank = settings["rank"]
        self.scale = (rank if settings["alpha"] is None else settings["alpha"]) / rank
        names = {"w1_a": (output, rank), "w1_b": (rank, width), "w2_a": (output, rank), "w2_b": (rank, width)}
        self.parts = [tensors.take(name, size) for name, size in names.items()]

    def basis(self, w):
        return None

    def apply(self, w, t, basis):
        a, b, c, d = (of(w).array(part, w) for part in self.parts)
        return w + ((a @ b) * (c @ d)).T * (self.scale * t)


def factorization(n, factor):
    """`(small, large)` with `small · large = n`, as `lycoris.functional.factorization`."""
    small = factor if factor and n % factor == 0 else None
    if small is None:
        most = min(n if factor is None else factor, math.isqrt(n))
        small = next((d for d in range(most, 0, -1) if n % d == 0), 1)
    return min(small, n // small), max(small, n // small)


class Lokr:
    """`w + s (W1 ⊗ W2)ᵀ`, where each of the two may be a product of low rank."""

    def __init__(self, settings, path, tensors, shape, window):
        width, output = shape
        rank = settings["rank"]
        # The window of a convolution belongs to the large matrix.
        sides = (output, width // window)
        if path in settings["sizes"]:
            smaller = settings["sizes"][path]
            if any(side % small for side, small in zip(sides, smaller)):
                tensors.refuse(f"the small matrix of {smaller} does not divide the weight; the adapter is of another base")
            pairs = [(small, side // small) for side, small in zip(sides, smaller)]
        else:
            pairs = [factorization(side, settings["factor"]) for side in sides]
        (out_small, out_large), (in_small, in_large) = pairs
        small = settings["decompose_both"] and 2 * rank < max(out_small, in_small)
        large = 2 * rank < max(out_large, in_large)
        self.parts = [
            self._take(tensors, "w1", small, (out_small, in_small), rank),
            self._take(tensors, "w2", large, (out_large, in_large * window), rank),
        ]
        alpha = rank if settings["alpha"] is None else settings["alpha"]
        self.scale = alpha / rank if small or large else 1.0

    @staticmethod
    def _take(tensors, name, low_rank, shape, rank):
        if not low_rank:
            return (tensors.take(f"{name}.whole", shape),)
        return (tensors.take(f"{name}.a", (shape[0], rank)), tensors.take(f"{name}.b", (rank, shape[1])))

    def basis(self, w):
        return None

    def apply(self, w, t, basis):
        xp = of(w)
        values = []
        for part in self.parts:
            arrays = [xp.array(matrix, w) for matrix in part]
            values.append(arrays[0] if len(arrays) == 1 else arrays[0] @ arrays[1])
        return w + kron(*values).T * (self.scale * t)


class Full:
    """`w + Δ`."""

    def __init__(self, settings, path, tensors, shape, window):
        self.delta = tensors.take("delta", shape)

    def basis(self, w):
        return None

    def apply(self, w, t, basis):
        return w + of(w).array(self.delta, w) * t
