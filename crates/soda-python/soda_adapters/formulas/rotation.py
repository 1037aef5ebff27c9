"""The rotation of one side of a weight, in every structure and parametrization of SODA.

| tensors | rotation |
|---|---|
| `factors.i`, `generators.i`, `matrices.i` | `R1 ⊗ … ⊗ Rm`; on the manifold, as Cayley transforms, unconstrained |
| `blocks` | `diag(R1, R2, …)` |
| `permuted.0.…` | `R Pᵀ R2 P` with a second product of the same kind |
| `basis` beside one factor | `I + Q (diag(a) Rr diag(b) - I) Qᵀ`, with `scales.input`, `scales.output` |
| `reflections` | `H_r ⋯ H_1` |

At a strength `t` each factor moves along its geodesic; unconstrained matrices and scales move on a straight line.
"""

import numpy as np

from ..arrays import of
from . import permutations
from .algebra import (
    blocks_left,
    cayley,
    kron_left,
    linear_power,
    reflections,
    rotation_power,
    skew,
)
from .tensors import orthonormal


class Rotation:
    """A rotation of a side of `width` entries, from the tensors below `prefix`."""

    def __init__(self, settings, tensors, prefix, width):
        self.width = width
        self.structure = settings["structure"]
        self.parametrization = settings["parametrization"]
        self.scales = None
        self.second = None
        if self.structure == "householder":
            self.reflections = tensors.take(f"{prefix}.reflections", (width, None))
            if self.reflections.shape[1] % 2 or not self.reflections.shape[1]:
                tensors.refuse(f"{prefix}.reflections has an odd number of vectors; the file is damaged")
        elif self.structure == "subspace":
            self.basis = tensors.take(f"{prefix}.basis", (width, None))
            orthonormal(tensors, f"{prefix}.basis", self.basis)
            rank = self.basis.shape[1]
            self.parts = self._factors(tensors, prefix, rank)
            if len(self.parts) != 1:
                tensors.refuse(f"{prefix} has {len(self.parts)} factors, and a subspace has one")
            if settings["scales"]:
                names = (f"{prefix}.scales.input", f"{prefix}.scales.output")
                self.scales = tuple(tensors.take(name, (rank,)) for name in names)
        else:
            self.parts = self._product(tensors, prefix)
            if self.structure != "kronecker":
                self.second = self._product(tensors, f"{prefix}.permuted.0")
                self.order = self._order(settings)

    def _product(self, tensors, prefix):
        if self.structure != "group-and-shuffle":
            return self._factors(tensors, prefix, self.width)
        blocks = tensors.take(f"{prefix}.blocks", (None, None, None))
        count, size, other = blocks.shape
        if size != other or count * size != self.width:
            tensors.refuse(f"{prefix}.blocks has the shape {list(blocks.shape)} on a side of {self.width}")
        if self.parametrization == "stiefel":
            orthonormal(tensors, f"{prefix}.blocks", blocks)
        return blocks

    def _factors(self, tensors, prefix, width):
        name = {"stiefel": "factors", "cayley": "generators", "unconstrained": "matrices"}[self.parametrization]
        factors = tensors.take_list(f"{prefix}.{name}")
        if int(np.prod([factor.shape[0] for factor in factors])) != width or not factors:
            sizes = " x ".join(str(factor.shape[0]) for factor in factors) or "none"
            tensors.refuse(f"{prefix}.{name} are {sizes} on a side of {width}; the adapter is of another base")
        if self.parametrization == "stiefel":
            for index, factor in enumerate(factors):
                orthonormal(tensors, f"{prefix}.{name}.{index}", factor)
        return factors

    def _order(self, settings):
        if self.structure == "group-and-shuffle":
            return permutations.shuffle(self.width, self.parts.shape[1])
        return permutations.random(self.width, settings["seed"] or 0)

    def _part(self, part, t):
        """One factor, or a batch of blocks, at the strength `t`."""
        if self.parametrization == "unconstrained":
            return linear_power(part, t)
        if self.parametrization == "cayley":
            part = cayley(skew(part))
        return rotation_power(part, t)

    def low_rank(self, t, like):
        """`Z` and `S` with `R = I + Z S Zᵀ`, for a subspace or reflections."""
        xp = of(like)
        if self.structure == "householder":
            z, s = reflections(xp.array(self.reflections, like))
            if t == 1.0:
                return z, s
            q, _ = xp.qr(z)
            overlap = q.T @ z
            factor = xp.eye(overlap.shape[0], like) + overlap @ s @ overlap.T
            return q, rotation_power(factor, t) - xp.eye(factor.shape[0], like)
        factor = self._part(xp.array(self.parts[0], like), t)
        if self.scales:
            a, b = ((xp.array(scale, like) - 1.0) * t + 1.0 for scale in self.scales)
            factor = a[:, None] * factor * b[None, :]
        return xp.array(self.basis, like), factor - xp.eye(factor.shape[0], like)

    def _times(self, parts, t, w, transposed):
        xp = of(w)
        if self.structure == "group-and-shuffle":
            blocks = self._part(xp.array(parts, w), t)
            return blocks_left(xp.swap(blocks) if transposed else blocks, w)
        factors = [self._part(xp.array(part, w), t) for part in parts]
        return kron_left([factor.T for factor in factors] if transposed else factors, w)

    def left(self, w, t, transposed=False):
        """Computes `Rᵗ w` for `w` `[width, cols]`, or the product with the transposed rotation."""
        xp = of(w)
        if self.structure in ("subspace", "householder"):
            z, s = self.low_rank(t, w)
            return w + z @ ((s.T if transposed else s) @ (z.T @ w))
        if self.second is None:
            return self._times(self.parts, t, w, transposed)
        order, back = xp.index(self.order, w), xp.index(permutations.inverse(self.order), w)
        if transposed:
            w = self._times(self.parts, t, w, True)
            return self._times(self.second, t, w[order], True)[back]
        w = self._times(self.second, t, w[order], False)[back]
        return self._times(self.parts, t, w, False)

    def right(self, w, t):
        """Computes `w Rᵗ` for `w` `[rows, width]`."""
        return self.left(w.T, t, transposed=True).T
