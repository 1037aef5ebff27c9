"""The formula of every method, on matrices `[in, out]` of numpy or torch.

`formula(...)` takes the tensors of one weight and returns an object with two functions:

- `basis(w)`: what the method takes from the base weight, such as a decomposition; `None` for most. It is slow and
  may be kept.
- `apply(w, t, basis)`: the adapted matrix at the strength `t`. 0 is the base and 1 the trained adapter; rotations
  move along their geodesic.

LoRA and SODA in a subspace also have `factors(w, t, basis)`: the change as a product of low rank.
"""

from ..errors import AdapterError
from .blocks import Boft, Oft
from .products import Full, Loha, Lokr, Lora
from .soda import Soda
from .tensors import Tensors

FORMULAS = {"soda": Soda, "lora": Lora, "loha": Loha, "lokr": Lokr, "oft": Oft, "boft": Boft, "full": Full}


def formula(method, settings, path, tensors, shape, check=True, masks=False):
    """Makes the formula of the weight at `path`, whose stored shape is `[out, in]` or `[out, in, kh, kw]`.

    Raises `AdapterError` for a tensor that is missing, unknown or of another shape. `check=False` leaves out the check
    of orthogonality, which a step of training has no time for. `masks=True` allows a mask over timesteps; the formula
    is then that of all directions, and `factors` gives them one by one.
    """
    window = 1
    for length in shape[2:]:
        window *= length
    matrix = (shape[1] * window, shape[0])
    if settings.get("timestep_mask"):
        if not masks:
            raise AdapterError(
                f"{path}.{method} has a timestep_mask, so that no weight stands for it at all timesteps; load it onto a "
                "pipeline by `soda_adapters.load`"
            )
        if len(shape) != 2:
            raise AdapterError(f"{path}.{method} has a timestep_mask, which a convolution cannot have; the file is damaged")
    taken = Tensors(tensors, f"{path}.{method}", check)
    made = FORMULAS[method](settings, path, taken, matrix, window)
    taken.finish()
    return made


def to_matrix(weight):
    """The matrix `[in, out]` of a stored weight `[out, in]`, or `[out, in, kh, kw]` of a convolution."""
    return weight.reshape(weight.shape[0], -1).T


def from_matrix(matrix, shape):
    """The stored weight of a matrix: the inverse of `to_matrix`."""
    return matrix.T.reshape(tuple(shape))


def adapted(made, weight, t, basis=None):
    """The adapted weight in the shape of `weight`, computed in f32, or in f64 for a weight in f64.

    `basis` is a kept result of `basis_of`; without it, it is computed.
    """
    from ..arrays import of

    xp = of(weight)
    w = xp.single(to_matrix(weight))
    if basis is None:
        basis = made.basis(w)
    return from_matrix(made.apply(w, t, basis), weight.shape)


def basis_of(made, weight):
    """What the formula takes from the base weight, to be kept between strengths; `None` for most methods."""
    from ..arrays import of

    return made.basis(of(weight).single(to_matrix(weight)))


def factors(made, weight, t, basis=None):
    """`a` `[in, Σr]` and `b` `[Σr, out]` with the adapted matrix `w + a b`, and the ranks `r` of the changes in them.

    A mask over timesteps takes directions from the end of each of these changes.
    """
    from ..arrays import of

    xp = of(weight)
    w = xp.single(to_matrix(weight))
    if basis is None:
        basis = made.basis(w)
    return made.factors(w, t, basis)
