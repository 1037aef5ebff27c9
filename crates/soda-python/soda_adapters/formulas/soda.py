"""SODA on one weight: `Wᵀ = R (W0ᵀ + ΔS) R' diag(c)` on the matrix `W0ᵀ` `[in, out]`.

The shift `ΔS = L ΔC B` is in the basis of a singular value decomposition or of a QR decomposition, which follow from
the weight and are not in files. A truncated spectrum has its singular vectors in the file.
"""

from ..arrays import of
from .rotation import Rotation
from .tensors import orthonormal


class Soda:
    """The formula of SODA, SVDiff, GSOFT, PSOFT and HRA."""

    def __init__(self, settings, path, tensors, shape, window):
        width, output = shape
        smaller = min(shape)
        self.rotations = [None, None]
        rotation = settings["rotation"]
        sides = {"input": (0,), "output": (1,), "both": (0, 1)}[rotation["side"]] if rotation else ()
        for side in sides:
            prefix = ("rotation", "output_rotation")[side]
            # A rank of 0 is no rotation, and so are reflections of a side of one entry.
            if any(name.startswith(prefix + ".") for name in tensors.tensors):
                self.rotations[side] = Rotation(rotation, tensors, prefix, shape[side])
            elif rotation["structure"] not in ("subspace", "householder"):
                tensors.refuse(f"the tensors of {prefix} are missing; the file is damaged")
        self.delta = self.low_rank = self.truncated = self.scale = None
        self.spectrum = settings["spectrum"]
        if self.spectrum and self.spectrum["rank"] is not None:
            k = min(self.spectrum["rank"], smaller)
            sizes = {"delta": (k,), "left": (width, k), "right": (output, k), "s": (k,)}
            self.truncated = {name: tensors.take(f"truncated_spectrum.{name}", size) for name, size in sizes.items()}
            for name in ("left", "right"):
                orthonormal(tensors, f"truncated_spectrum.{name}", self.truncated[name])
        elif self.spectrum and self.spectrum["shift"]["form"] == "diagonal":
            self.delta = tensors.take("spectrum.delta", (smaller,))
        elif self.spectrum:
            rank = self.spectrum["shift"]["rank"]
            names = ("spectrum.low_rank.a", "spectrum.low_rank.start")
            self.low_rank = tuple(tensors.take(name, (smaller, rank)) for name in names)
        if settings["output_scale"]:
            self.scale = tensors.take("output_scale", (output,))

    def basis(self, w):
        """The decomposition of `w` that the shift belongs to, or `None`."""
        if self.delta is None and self.low_rank is None:
            return None
        xp = of(w)
        exact = xp.double(w)
        if self.spectrum["basis"] == "svd":
            u, s, vt = xp.svd(exact)
            # The first largest entry of each column of `U` is positive.
            signs = _signs(u, abs(u).argmax(0))
            return tuple(xp.array(part, w) for part in (u * signs[None, :], s, vt * signs[:, None]))
        q, r = xp.qr(exact)
        k = q.shape[1]
        diagonal = r[range(k), range(k)]
        signs = xp.where(diagonal < 0, -xp.ones((k,), q), xp.ones((k,), q))
        return (xp.array(q * signs[None, :], w),)

    def apply(self, w, t, basis):
        """The adapted matrix `[in, out]` at the strength `t`."""
        xp = of(w)
        if basis is not None:
            w = w + self._shift(w, t, basis)
        if self.truncated:
            part = {name: xp.array(value, w) for name, value in self.truncated.items()}
            w = w + (part["left"] * xp.maximum(part["delta"] * t, -part["s"])[None, :]) @ part["right"].T
        if self.rotations[0]:
            w = self.rotations[0].left(w, t)
        if self.rotations[1]:
            w = self.rotations[1].right(w, t)
        if self.scale is not None:
            w = w * ((xp.array(self.scale, w) - 1.0) * t + 1.0)[None, :]
        return w

    def factors(self, w, t, basis):
        """`a`, `b` with `w + a b`, and the ranks of the input's subspace, the spectrum and the output's subspace.

            a  = [Q  L  w Q']
            b0 = [M (Qᵀw + QᵀL Δ Bᵀ) ; Δ Bᵀ],    M = Rr - I
            b  = [b0 + b0 Q' M' Q'ᵀ ; M' Q'ᵀ]
        """
        xp = of(w)
        columns, rows = [], []
        turned = w
        if self.truncated:
            part = {name: xp.array(value, w) for name, value in self.truncated.items()}
            shift = (part["right"] * xp.maximum(part["delta"] * t, -part["s"])[None, :]).T
            columns, rows = [part["left"]], [shift]
            turned = w + part["left"] @ shift
        if self.rotations[0]:
            q, deviation = self.rotations[0].low_rank(t, w)
            columns, rows = [q, *columns], [deviation @ (q.T @ turned), *rows]
        if self.rotations[1]:
            q, deviation = self.rotations[1].low_rank(t, w)
            turn = deviation @ q.T
            columns, rows = [*columns, w @ q], [*(b + (b @ q) @ turn for b in rows), turn]
        if not columns:
            return xp.zeros((w.shape[0], 0), w), xp.zeros((0, w.shape[1]), w), []
        return xp.concat(columns, 1), xp.concat(rows, 0), [part.shape[1] for part in columns]

    def _shift(self, w, t, basis):
        """`L ΔC B`."""
        xp = of(w)
        left = basis[0]
        if self.delta is not None:
            delta = xp.array(self.delta, w) * t
            if len(basis) == 3:
                delta = xp.maximum(delta, -basis[1])
            left = left * delta[None, :]
        else:
            a, start = (xp.array(part, w) for part in self.low_rank)
            left = left @ (xp.triu(a @ a.T - start @ start.T) * t)
        if len(basis) == 3:
            return left @ basis[2]
        output = w.shape[1]
        missing = output - left.shape[1]
        return xp.concat([left, xp.zeros((left.shape[0], missing), w)], 1) if missing else left


def _signs(u, largest):
    """1 or -1 for each column, by the sign of the entry of this row."""
    xp = of(u)
    entries = u[largest, range(u.shape[1])]
    return xp.where(entries < 0, -xp.ones(tuple(entries.shape), u), xp.ones(tuple(entries.shape), u))
