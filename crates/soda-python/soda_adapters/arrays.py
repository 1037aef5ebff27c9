"""The few functions by which numpy and torch differ, so that every formula is written once.

`of(array)` returns the functions for an array of either library. Arrays that formulas combine have one library,
dtype and device; `array` brings the numbers of a file there.
"""

import numpy as np

from .errors import AdapterError


class NumpyArrays:
    """The functions for `numpy.ndarray`."""

    def array(self, values, like):
        return np.asarray(values, dtype=like.dtype)

    def index(self, values, like):
        return values

    def double(self, a):
        return a.astype(np.float64)

    def single(self, a):
        """`a` in the type that weights are computed in: f64 for f64, else f32."""
        return a if a.dtype == np.float64 else a.astype(np.float32)

    def eye(self, n, like):
        return np.eye(n, dtype=like.dtype)

    def zeros(self, shape, like):
        return np.zeros(shape, dtype=like.dtype)

    def ones(self, shape, like):
        return np.ones(shape, dtype=like.dtype)

    def concat(self, arrays, axis):
        return np.concatenate(arrays, axis)

    def stack(self, arrays, axis):
        return np.stack(arrays, axis)

    def maximum(self, a, b):
        return np.maximum(a, b)

    def where(self, condition, a, b):
        return np.where(condition, a, b)

    def sqrt(self, a):
        return np.sqrt(a)

    def triu(self, a):
        return np.triu(a)

    def swap(self, a):
        """Transposes the last two axes."""
        return np.swapaxes(a, -1, -2)

    def permute(self, a, axes):
        return np.transpose(a, axes)

    def norm(self, a):
        return float(np.linalg.norm(a))

    def inverse(self, a):
        return np.linalg.inv(a)

    def svd(self, a):
        try:
            return np.linalg.svd(a, full_matrices=False)
        except np.linalg.LinAlgError:
            raise AdapterError("a weight cannot be decomposed; the base model is damaged") from None

    def qr(self, a):
        return np.linalg.qr(a)


class TorchArrays:
    """The functions for `torch.Tensor`, on the device of the argument."""

    def __init__(self, torch):
        self.torch = torch

    def array(self, values, like):
        if not isinstance(values, self.torch.Tensor):
            values = self.torch.from_numpy(np.ascontiguousarray(values))
        return values.to(device=like.device, dtype=like.dtype)

    def index(self, values, like):
        return self.torch.from_numpy(np.ascontiguousarray(values)).to(like.device)

    def double(self, a):
        # Apple's GPUs have no f64.
        return a.to("cpu", self.torch.float64) if a.device.type == "mps" else a.to(self.torch.float64)

    def single(self, a):
        return a if a.dtype == self.torch.float64 else a.to(self.torch.float32)

    def eye(self, n, like):
        return self.torch.eye(n, dtype=like.dtype, device=like.device)

    def zeros(self, shape, like):
        return self.torch.zeros(shape, dtype=like.dtype, device=like.device)

    def ones(self, shape, like):
        return self.torch.ones(shape, dtype=like.dtype, device=like.device)

    def concat(self, arrays, axis):
        return self.torch.cat(list(arrays), axis)

    def stack(self, arrays, axis):
        return self.torch.stack(list(arrays), axis)

    def maximum(self, a, b):
        return self.torch.maximum(a, b)

    def where(self, condition, a, b):
        return self.torch.where(condition, a, b)

    def sqrt(self, a):
        return self.torch.sqrt(a)

    def triu(self, a):
        return self.torch.triu(a)

    def swap(self, a):
        return a.transpose(-1, -2)

    def permute(self, a, axes):
        return a.permute(*axes)

    def norm(self, a):
        return float(self.torch.linalg.vector_norm(a))

    def inverse(self, a):
        return self.torch.linalg.inv(a)

    def svd(self, a):
        try:
            return self.torch.linalg.svd(a, full_matrices=False)
        except self.torch.linalg.LinAlgError:
            raise AdapterError("a weight cannot be decomposed; the base model is damaged") from None

    def qr(self, a):
        return self.torch.linalg.qr(a)


_NUMPY = NumpyArrays()


def of(array):
    """Returns the functions for `array`, a numpy array or a torch tensor."""
    if isinstance(array, np.ndarray):
        return _NUMPY
    import torch

    return TorchArrays(torch)
