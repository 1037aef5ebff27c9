"""Logarithms, powers and transforms of small matrices, and products with Kronecker and block-diagonal matrices.

Powers are computed in f64 (Higham, Functions of Matrices, 11.5), as the `soda` binary does. Batches have the shape
`[b, n, n]`.
"""

from ..arrays import of
from ..errors import AdapterError

# The number of square roots before the series: angles shrink from at most pi to pi/64.
HALVINGS = 6
# `asin(x)/x` in powers of `x²`; the next term is below 1e-15 at pi/64.
ASIN = (1.0, 1.0 / 6.0, 3.0 / 40.0, 15.0 / 336.0, 105.0 / 3456.0)
# The order of the Taylor series of the exponential; its remainder at 1/4 is below 1e-16.
EXP_ORDER = 12


def skew(a):
    """The skew-symmetric part `(A - Aᵀ) / 2`."""
    return (a - of(a).swap(a)) * 0.5


def cayley(a):
    """The Cayley transforms `(I - A)⁻¹ (I + A)` of skew-symmetric matrices."""
    xp = of(a)
    identity = xp.eye(a.shape[-1], a)
    return xp.inverse(identity - a) * 2.0 - identity


def polar(a):
    """The nearest orthogonal matrices."""
    u, _, vt = of(a).svd(a)
    return u @ vt


def logarithm(q):
    """The skew principal logarithms of orthogonal matrices in f64."""
    xp = of(q)
    identity = xp.eye(q.shape[-1], q)
    for _ in range(HALVINGS):
        # The square root is the polar factor of `I + Q`; the singular values are `2 cos(θ/2)`.
        u, s, vt = xp.svd(identity + q)
        if not bool((s >= 1e-5).all()):
            raise AdapterError("a rotation turns by half a turn and has no power; use the strength 1")
        q = u @ vt
    # The skew part has eigenvalues i sin θ, so that θ is its arcsine.
    sine = skew(q)
    square = -(sine @ sine)
    series = identity * ASIN[-1]
    for coefficient in reversed(ASIN[:-1]):
        series = series @ square + identity * coefficient
    return sine @ series * 2.0**HALVINGS


def exponential(a):
    """The exponentials of matrices in f64, by scaling and squaring of the Taylor series."""
    xp = of(a)
    halvings = 0
    while xp.norm(a) * 4.0 > 2.0**halvings and halvings < 64:
        halvings += 1
    a = a * 2.0**-halvings
    identity = xp.eye(a.shape[-1], a)
    total = identity
    for order in range(EXP_ORDER, 0, -1):
        total = identity + (a @ total) * (1.0 / order)
    for _ in range(halvings):
        total = total @ total
    return total


def rotation_power(q, t):
    """`exp(t log Q)` of orthogonal matrices, in the dtype of `q`."""
    if t == 1.0:
        return q
    xp = of(q)
    return xp.array(exponential(logarithm(xp.double(q)) * t), q)


def linear_power(m, t):
    """`I + t (M - I)` of matrices that are no rotations."""
    identity = of(m).eye(m.shape[-1], m)
    return identity + (m - identity) * t


def kron_left(factors, w):
    """`(R1 ⊗ … ⊗ Rm) w` for `w` `[n, cols]`. The first factor has the slowest index."""
    rows, cols = w.shape
    before, after = 1, rows * cols
    for factor in factors:
        n = factor.shape[0]
        after //= n
        w = factor @ w.reshape(before, n, after)
        before *= n
    return w.reshape(rows, cols)


def kron(a, b):
    """`A ⊗ B` of two matrices."""
    (m, n), (p, q) = a.shape, b.shape
    return (a.reshape(m, 1, n, 1) * b.reshape(1, p, 1, q)).reshape(m * p, n * q)


def blocks_left(blocks, w):
    """`diag(R1, R2, …) w` for `w` `[n, cols]` and `blocks` `[n/b, b, b]`."""
    count, size, _ = blocks.shape
    return (blocks @ w.reshape(count, size, w.shape[1])).reshape(w.shape)


def reflections(u):
    """`Z` and `S` with `H_r ⋯ H_1 = I + Z S Zᵀ`, for the vectors `u` `[n, r]` of reflections with an even `r`.

    For unit vectors `a`, `b` of a pair with `e = b - a` and `ε = ‖e‖²`, `H_a H_b = I + [a e] M [a e]ᵀ` with
    `M = [-2ε 2-2ε; -2 -2]`. Every term has a factor `e`, so that equal pairs are exactly the identity.
    """
    xp = of(u)
    n, r = u.shape
    norms = xp.sqrt((u * u).sum(0))
    unit = (u / xp.where(norms > 1e-15, norms, xp.ones((r,), u))).reshape(n, r // 2, 2)
    a, e = unit[:, :, 0], unit[:, :, 1] - unit[:, :, 0]
    z = xp.stack([a, e], 2).reshape(n, r)
    squares = (e * e).sum(0)
    gram = z.T @ z
    s = None
    for pair in range(r // 2):
        square = squares[pair]
        two = xp.ones((), u) * -2.0
        m = xp.stack([square * -2.0, square * -2.0 + 2.0, two, two], 0).reshape(2, 2)
        if s is None:
            s = m
            continue
        before = 2 * pair
        right = s @ (gram[:before, before : before + 2] @ m)
        below = xp.zeros((2, before), u)
        s = xp.concat([xp.concat([s, right], 1), xp.concat([below, m], 1)], 0)
    # `R` is the product of the reflections from the last to the first.
    return z, s.T
