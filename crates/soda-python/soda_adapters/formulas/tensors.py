"""The tensors of one weight's adapter, taken by name and shape, so that none is left unused."""

from ..arrays import of
from ..errors import AdapterError


class Tensors:
    """A dictionary of tensors from which a formula takes what it uses.

    `where` names the weight and the method in messages. `check` says whether orthogonality is checked.
    """

    def __init__(self, tensors, where, check=True):
        self.tensors = dict(tensors)
        self.check = check
        self.where = where

    def __contains__(self, name):
        return name in self.tensors

    def take(self, name, shape):
        """Removes and returns the tensor, which must have this shape; `None` stands for any length."""
        if name not in self.tensors:
            raise AdapterError(f"the tensor {self.where}.{name} is missing; the file is damaged")
        tensor = self.tensors.pop(name)
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(b is not None and a != b for a, b in zip(found, shape)):
            wanted = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
            raise AdapterError(f"the tensor {self.where}.{name} has the shape {list(found)}, not {wanted}")
        return tensor

    def take_list(self, name):
        """Removes and returns the square matrices `<name>.0`, `<name>.1`, …"""
        found = []
        while f"{name}.{len(found)}" in self.tensors:
            key = f"{name}.{len(found)}"
            n = self.tensors[key].shape[0] if self.tensors[key].ndim else None
            found.append(self.take(key, (n, n)))
        return found

    def finish(self):
        """Refuses a tensor that nothing has taken."""
        for name in self.tensors:
            raise AdapterError(f"the tensor {self.where}.{name} is unknown to the method; update soda-adapters")

    def refuse(self, reason):
        raise AdapterError(f"{self.where}: {reason}")


def orthonormal(tensors, name, matrix):
    """Refuses a matrix `[.., n, r]` whose columns are not orthonormal to 1e-4."""
    if not tensors.check:
        return
    xp = of(matrix)
    matrix = xp.double(matrix)
    error = abs(xp.swap(matrix) @ matrix - xp.eye(matrix.shape[-1], matrix)).max() if matrix.shape[-1] else 0.0
    if not error <= 1e-4:
        tensors.refuse(f"{name} is not orthogonal (max |QᵀQ - I| = {float(error):.1e}); the file is damaged")
