"""Adapters with a mask over timesteps on the layers of a network.

A hook of the network keeps the timesteps of its call, and a hook of each adapted layer adds the product of its rows
with the directions in use. The base weight stays.
"""

import inspect

import numpy as np
import torch

from .errors import AdapterError
from .formulas.timestep_mask import LAST, active_directions

# What diffusers calls a network's timesteps, and what it makes of the scheduler's.
_ARGUMENTS = {
    "Flux2Transformer2DModel": ("timestep", lambda t: _whole(t * LAST)),
    "ZImageTransformer2DModel": ("t", lambda t: _whole(LAST - t * LAST)),
}


def _whole(timesteps):
    """Undoes the rounding of whole timesteps, of which the floor would make a step."""
    nearest = np.round(timesteps)
    return np.where(np.abs(timesteps - nearest) < 1e-3, nearest, timesteps)


class Timesteps:
    """The timesteps of a network's last call, and which directions a mask leaves at them."""

    def __init__(self, mask):
        self.mask = mask
        # An array `[b]`, of one entry if all samples have one timestep; None before the first call. It stays after a
        # call, since backpropagation may run a layer again.
        self.values = None
        self._rows = {}

    def set(self, values):
        self.values = values[:1] if (values == values[0]).all() else values
        self._rows = {}

    def rows(self, ranks, like):
        """Ones and zeros, `[b, Σr]`, for changes of these ranks that stand beside each other."""
        key = (tuple(ranks), like.device, like.dtype)
        if key not in self._rows:
            active = [active_directions(self.mask, self.values, rank) for rank in ranks]
            parts = [np.arange(rank)[None, :] < count[:, None] for rank, count in zip(ranks, active)]
            self._rows[key] = torch.from_numpy(np.concatenate(parts, 1)).to(like)
        return self._rows[key]


class MaskedChange:
    """The change of one linear layer: a function from its inputs `x` to `x a diag(m) b`.

    `factors` are `a` `[in, Σr]`, `b` `[Σr, out]` and the ranks `r` of the changes in them.
    """

    def __init__(self, timesteps, path, factors):
        self.timesteps, self.path = timesteps, path
        *self.factors, self.ranks = factors
        if not all(bool(torch.isfinite(factor).all()) for factor in self.factors):
            raise AdapterError(f"the adapted weight {path} is not finite; use a smaller strength")
        # The factors on the device and in the type of the rows.
        self.placed = None

    def __call__(self, x):
        # Rows in half precision are multiplied so, with sums in f32, as those of the base weight are.
        dtype = x.dtype if x.dtype.itemsize == 2 else self.factors[0].dtype
        if self.placed is None or (self.placed[0].device, self.placed[0].dtype) != (x.device, dtype):
            self.placed = [factor.to(x.device, dtype) for factor in self.factors]
        a, b = self.placed
        columns = x.to(dtype) @ a
        timesteps = self.timesteps.values
        if timesteps is not None and self.ranks:
            if len(timesteps) not in (1, columns.shape[0]):
                raise AdapterError(
                    f"{self.path} has {columns.shape[0]} rows for samples of {len(timesteps)} timesteps, so that a "
                    "timestep_mask cannot tell them apart; give all samples one timestep"
                )
            mask = self.timesteps.rows(self.ranks, columns)
            columns = columns * mask.reshape(-1, *[1] * (columns.ndim - 2), mask.shape[1])
        return columns @ b


class Masks:
    """The masked changes of one adapter on one network, as hooks of its layers."""

    def __init__(self, network, mask, where):
        self.network = getattr(network, "_orig_mod", network)
        self.where = where
        self.name, self.convert = _ARGUMENTS.get(type(self.network).__name__, ("timestep", lambda t: t))
        self.signature = inspect.signature(self.network.forward)
        if self.name not in self.signature.parameters:
            raise AdapterError(
                f"{where} has a timestep_mask, and the {type(self.network).__name__} has no argument `{self.name}`"
            )
        self.timesteps = Timesteps(mask)
        # By path: the layer, and the module that has it.
        self.layers = {}
        self.changes = {}
        self.handles = []

    def find_layer(self, path, parameter):
        """Finds the layer of a weight. Only a linear layer has rows by samples."""
        for name, module in self.network.named_modules():
            if module._parameters.get("weight") is parameter:
                if not isinstance(module, torch.nn.Linear):
                    break
                self.layers[path] = (module, self.network.get_submodule(name.rpartition(".")[0]))
                return
        raise AdapterError(f"{self.where}: the timestep_mask needs a linear layer, and {path} belongs to none")

    def set(self, path, factors):
        """Sets the change of a layer; None for the base."""
        self.changes[path] = factors and MaskedChange(self.timesteps, path, factors)

    def attach(self):
        self.handles = [self.network.register_forward_pre_hook(self._called, with_kwargs=True)]
        for path, (layer, _) in self.layers.items():
            self.handles.append(layer.register_forward_hook(self._hook(path)))

    def detach(self):
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _hook(self, path):
        def add(_layer, args, output):
            change = self.changes[path]
            return None if change is None else output + change(args[0]).to(output.dtype)

        return add

    def _called(self, _network, args, kwargs):
        given = self.signature.bind_partial(*args, **kwargs).arguments.get(self.name)
        if given is None:
            raise AdapterError(f"{self.where} has a timestep_mask; call the network with `{self.name}`")
        self.timesteps.set(self.convert(torch.as_tensor(given).detach().reshape(-1).float().cpu().numpy()))
        for path, (_, parent) in self.layers.items():
            if _is_fused(parent):
                raise AdapterError(f"{path} is fused, which a timestep_mask excludes; call unfuse_qkv_projections")


def _is_fused(attention):
    """Whether an attention module of diffusers multiplies with one matrix for several of its layers."""
    fused = getattr(attention, "fused_projections", False)
    # This class keeps the mark when it is unfused; its processor decides.
    processor = type(getattr(attention, "processor", None)).__name__
    return fused and (type(attention).__name__ != "Attention" or processor.startswith("Fused"))
