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


class Masks:
    """The masked changes of one adapter on one network, as hooks of its layers."""

    def __init__(self, network, mask, where):
        self.network = getattr(network, "_orig_mod", network)
        self.mask, self.where = mask, where
        self.name, self.convert = _ARGUMENTS.get(type(self.network).__name__, ("timestep", lambda t: t))
        self.signature = inspect.signature(self.network.forward)
        if self.name not in self.signature.parameters:
            raise AdapterError(
                f"{where} has a timestep_mask, and the {type(self.network).__name__} has no argument `{self.name}`"
            )
        # The timesteps of the last call; None before it. A layer that backpropagation runs again needs them, too.
        self.timesteps = None
        self.made = {}
        self.layers = {}
        self.handles = []

    def layer(self, path, parameter):
        """Finds the layer of a weight. Only a linear layer has rows by samples."""
        for name, module in self.network.named_modules():
            if module._parameters.get("weight") is parameter:
                if not isinstance(module, torch.nn.Linear):
                    break
                parent = self.network.get_submodule(name.rpartition(".")[0])
                self.layers[path] = _Layer(self, module, parent, path)
                return
        raise AdapterError(f"{self.where}: the timestep_mask needs a linear layer, and {path} belongs to none")

    def attach(self):
        self.handles = [self.network.register_forward_pre_hook(self._called, with_kwargs=True)]
        for layer in self.layers.values():
            self.handles.append(layer.module.register_forward_hook(layer.add))

    def detach(self):
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _called(self, _module, args, kwargs):
        given = self.signature.bind_partial(*args, **kwargs).arguments.get(self.name)
        if given is None:
            raise AdapterError(f"{self.where} has a timestep_mask; call the network with `{self.name}`")
        timesteps = torch.as_tensor(given).detach().reshape(-1).float().cpu().numpy()
        # Samples of one timestep have one mask.
        self.timesteps = self.convert(timesteps[:1] if (timesteps == timesteps[0]).all() else timesteps)
        self.made = {}
        for layer in self.layers.values():
            if _is_fused(layer.parent):
                raise AdapterError(f"{layer.path} is fused, which a timestep_mask excludes; call unfuse_qkv_projections")

    def rows(self, ranks, like):
        """Ones and zeros, `[samples, Σr]`, with one row if all samples have one timestep."""
        key = (tuple(ranks), like.device, like.dtype)
        if key not in self.made:
            active = [active_directions(self.mask, self.timesteps, rank) for rank in ranks]
            parts = [np.arange(rank)[None, :] < count[:, None] for rank, count in zip(ranks, active)]
            self.made[key] = torch.from_numpy(np.concatenate(parts, 1)).to(like)
        return self.made[key]


def _is_fused(attention):
    """Whether an attention module of diffusers multiplies with one matrix for several of its layers."""
    fused = getattr(attention, "fused_projections", False)
    # This class keeps the mark when it is unfused; its processor decides.
    processor = type(getattr(attention, "processor", None)).__name__
    return fused and (type(attention).__name__ != "Attention" or processor.startswith("Fused"))


class _Layer:
    """The change of one linear layer."""

    def __init__(self, masks, module, parent, path):
        self.masks, self.module, self.parent, self.path = masks, module, parent, path
        # `a` `[in, Σr]`, `b` `[Σr, out]` and the ranks of the changes that stand beside each other in them.
        self.factors = None
        self.ranks = []
        # The factors on the device and in the type of the rows.
        self.placed = None

    def set(self, factors, ranks):
        """Sets the change; None for the base."""
        if factors is not None and not all(bool(torch.isfinite(factor).all()) for factor in factors):
            raise AdapterError(f"the adapted weight {self.path} is not finite; use a smaller strength")
        self.factors, self.ranks, self.placed = factors, ranks, None

    def add(self, _module, args, output):
        """The hook: adds `x a diag(m) b` to the output."""
        if self.factors is None or not self.ranks:
            return None
        x = args[0]
        # Rows in half precision are multiplied so, with sums in f32, as those of the base weight are.
        dtype = x.dtype if x.dtype.itemsize == 2 else self.factors[0].dtype
        if self.placed is None or (self.placed[0].device, self.placed[0].dtype) != (x.device, dtype):
            self.placed = [factor.to(x.device, dtype) for factor in self.factors]
        a, b = self.placed
        columns = x.to(dtype) @ a
        timesteps = self.masks.timesteps
        if timesteps is not None:
            if len(timesteps) not in (1, columns.shape[0]):
                raise AdapterError(
                    f"{self.path} has {columns.shape[0]} rows for samples of {len(timesteps)} timesteps, so that a "
                    "timestep_mask cannot tell them apart; give all samples one timestep"
                )
            mask = self.masks.rows(self.ranks, columns)
            columns = columns * mask.reshape(-1, *[1] * (columns.ndim - 2), mask.shape[1])
        return output + (columns @ b).to(output.dtype)
