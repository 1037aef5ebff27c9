"""Loading adapters onto diffusers pipelines and torch modules, with an exact undo.

The adapted weights replace those of the base, and the base weights are kept in main memory. So inference costs
nothing, every attention processor and compiler works as before, and `unload` restores the base to the bit.

Several adapters on one weight add their changes, `W0 + Σ (Wᵢ - W0)`, as `soda merge` does by default.

A mask over timesteps has no adapted weight: `masks` adds its changes to the outputs of layers.
"""

import math
import warnings
import weakref

import torch

from .errors import AdapterError
from .files import AdapterFile, read
from .formulas import adapted, basis_of, factors, formula
from .masks import Masks
from .pipelines import Schedule, Words
from .prompt_encoding import arguments
from .settings import needs_its_base
from .targets import base_hash, file_path, select

# The state of every network with adapters, and the loaded adapters of every pipeline or module.
_NETWORKS = weakref.WeakKeyDictionary()
_LOADED = weakref.WeakKeyDictionary()


def load(target, file, strength=1.0, *, component=None, check_base=True, keep_decompositions=True):
    """Loads an adapter onto a diffusers pipeline, or onto one network, and returns a `Loaded`.

    `file` is the path of an adapter file or an `AdapterFile`. `strength` is 0 for the base and 1 for the trained
    adapter; rotations move along their geodesic. A pipeline also gets the new words and the noise schedule of the
    file. `component` chooses the part of the file for a single network, such as `unet`.

    Methods with a decomposition need minutes for a large model. `keep_decompositions` keeps them in main memory, so
    that another strength is quick; they take twice the adapted weights in f32.

    Raises `AdapterError`, and changes nothing, for a file that cannot be read, another base model, and weights that
    are quantized or not in memory.
    """
    _check_strength(strength)
    adapter = file if isinstance(file, AdapterFile) else read(file)
    networks = _networks(target, adapter, component)
    entries = []
    for name, module in networks.items():
        entries.append(_Entry(module, adapter, name, strength, check_base, keep_decompositions))
    loaded = Loaded(entries, strength)
    try:
        for entry in entries:
            entry.attach()
        if not isinstance(target, torch.nn.Module):
            needed = arguments(target, adapter.prompt_encoding)
            if needed:
                given = ", ".join(f"{name}={value}" for name, value in needed.items())
                warnings.warn(f"{adapter.path} was trained on prompts of another encoding: call the pipeline with {given}")
            for change in (Schedule(target, adapter), Words(target, adapter)):
                change.apply()
                loaded.changes.append(change)
        elif adapter.tokens:
            warnings.warn(f"{adapter.path} has new words, which a single network cannot have; load onto a pipeline")
    except BaseException:
        loaded.unload()
        raise
    loaded.target = weakref.ref(target)
    _LOADED.setdefault(target, []).append(loaded)
    return loaded


def set_strength(target, strength):
    """Sets the strength of all adapters of a pipeline or module; `Loaded.set_strength` sets that of one."""
    for loaded in list(_of(target)):
        loaded.set_strength(strength)


def unload(target):
    """Removes all adapters of a pipeline or module. The weights are those of the base, to the bit."""
    for loaded in reversed(_of(target)):
        loaded.unload()


class Loaded:
    """A loaded adapter. A `with` statement unloads it at its end."""

    def __init__(self, entries, strength):
        self.strength = strength
        self.changes = []
        # A weak reference to the pipeline or module, once the adapter is loaded.
        self.target = lambda: None
        self._entries = entries

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unload()

    def set_strength(self, strength):
        """Sets the strength of this adapter. New words do not depend on it."""
        _check_strength(strength)
        before = self.strength
        try:
            for entry in self._entries:
                entry.set_strength(strength)
        except BaseException:
            for entry in self._entries:
                entry.set_strength(before)
            raise
        self.strength = strength

    def unload(self):
        """Removes this adapter. Other adapters of the same weights stay."""
        for change in reversed(self.changes):
            change.undo()
        self.changes = []
        for entry in self._entries:
            entry.detach()
        self._entries = []
        target = self.target()
        others = [other for other in _LOADED.get(target, ()) if other is not self] if target is not None else []
        if others:
            _LOADED[target] = others
        elif target is not None:
            _LOADED.pop(target, None)


def _of(target):
    found = _LOADED.get(target)
    if not found:
        raise AdapterError(f"the {type(target).__name__} has no adapter; call soda_adapters.load first")
    return found


def _check_strength(strength):
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise AdapterError(f"the strength is {strength!r}, and it has to be a finite number")


def _networks(target, adapter, component):
    """The networks by component of the file."""
    if not isinstance(target, torch.nn.Module):
        networks = {name: getattr(target, name, None) for name in adapter.parts}
        for name, module in networks.items():
            if not isinstance(module, torch.nn.Module):
                raise AdapterError(f"{adapter.path} adapts the {name}, which the {type(target).__name__} lacks")
        return networks
    names = list(adapter.parts)
    if component is None and len(names) != 1:
        raise AdapterError(f"{adapter.path} has the parts {names}; choose one with component=…")
    if component is not None and component not in names:
        raise AdapterError(f"{adapter.path} has no part {component!r}; it has {names}")
    return {component or names[0]: target}


def _parameters(module):
    """The parameters by the paths of adapter files."""
    module = getattr(module, "_orig_mod", module)
    named = dict(module.named_parameters())
    wrapped = [name.removesuffix(".base_layer.weight") for name in named if name.endswith(".base_layer.weight")]
    found = {}
    for name, parameter in named.items():
        # Layers of PEFT keep their weight in `base_layer`, beside tensors of their own.
        if any(name.startswith(f"{layer}.") for layer in wrapped) and ".base_layer." not in name:
            continue
        path = name.replace(".base_layer.", ".").replace("._orig_mod.", ".")
        found[file_path(path)] = parameter
    return found


class _Entry:
    """One adapter on one network."""

    def __init__(self, module, adapter, component, strength, check_base, keep):
        part = adapter.parts[component]
        self.module, self.strength, self.keep = module, float(strength), keep
        self.parameters = _parameters(module)
        where = f"{adapter.path} ({component})"
        shapes = {path: tuple(parameter.shape) for path, parameter in self.parameters.items()}
        selected = select(part.targets, shapes)
        for path in part.weights:
            if path not in selected:
                raise AdapterError(f"{where} has the weight {path}, which the {type(module).__name__} lacks")
        for path in selected:
            _check_weight(path, self.parameters[path])
        made = {
            path: formula(part.method, part.settings, path, part.weights.get(path, {}), shapes[path], masks=True)
            for path in selected
        }
        # Text encoders have no timestep and use all directions, as a weight does.
        mask = part.settings.get("timestep_mask") if component in ("unet", "transformer") else None
        self.formulas, self.masked = ({}, made) if mask else (made, {})
        self.masks = Masks(module, mask, where) if mask else None
        for path in self.masked:
            self.masks.find_layer(path, self.parameters[path])
        if check_base:
            self._check_base(where, adapter, part, selected)
        self.bases = {}

    def _check_base(self, where, adapter, part, selected):
        state = _NETWORKS.get(self.module)
        originals = state.originals if state else {}
        weights = {path: originals.get(path, self.parameters[path].detach()) for path in selected}
        pairs = ((path, weights[path].float().cpu().numpy()) for path in selected)
        if base_hash(pairs, part.base_hash) == part.base_hash:
            return
        rounded = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in weights.values())
        trained = f"{where} was trained on another base (`{adapter.base}`)"
        if not needs_its_base(part.method, part.settings):
            warnings.warn(f"{trained}; its change is added all the same")
        elif rounded:
            warnings.warn(
                f"{where}: the weights are in half precision, so that it cannot be checked whether they are those of "
                f"the base `{adapter.base}`"
            )
        else:
            raise AdapterError(f"{trained}, and its method `{part.method}` needs its own; load that base")

    def attach(self):
        state = _NETWORKS.setdefault(self.module, _Network())
        state.entries.append(self)
        state.update(self.formulas)
        self._set_masked()
        if self.masks:
            self.masks.attach()

    def detach(self):
        if self.masks:
            self.masks.detach()
        state = _NETWORKS.get(self.module)
        if state and self in state.entries:
            state.entries.remove(self)
            state.update(self.formulas)
            if not state.entries:
                del _NETWORKS[self.module]

    def set_strength(self, strength):
        if strength != self.strength:
            self.strength = float(strength)
            _NETWORKS[self.module].update(self.formulas)
            self._set_masked()

    def weight(self, path, base):
        """The adapted weight for the base weight on its device."""
        return self._of_base(adapted, self.formulas[path], path, base)

    @torch.no_grad()
    def _set_masked(self):
        """Computes the changes of the layers with a mask over timesteps."""
        originals = _NETWORKS[self.module].originals
        for path, made in self.masked.items():
            if self.strength == 0.0:
                self.masks.set(path, None)
                continue
            parameter = self.parameters[path]
            base = originals.get(path, parameter).to(parameter.device)
            self.masks.set(path, self._of_base(factors, made, path, base))

    def _of_base(self, function, made, path, base):
        """`function` of a formula, a base weight on its device, the strength and the decomposition."""
        try:
            return function(made, base, self.strength, self._basis(made, path, base))
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from None

    def _basis(self, made, path, base):
        basis = self.bases.get(path)
        if basis is None:
            basis = basis_of(made, base)
            if basis is not None and self.keep:
                self.bases[path] = tuple(part.cpu() for part in basis)
            return basis
        return tuple(part.to(base.device) for part in basis)


class _Network:
    """The base weights of a network and its adapters."""

    def __init__(self):
        # By path: the base weight in main memory, and the parameter that it belongs to.
        self.originals = {}
        self.homes = {}
        self.entries = []

    @torch.no_grad()
    def update(self, paths):
        """Computes the weights at these paths again."""
        for path in paths:
            active = [entry for entry in self.entries if path in entry.formulas]
            if not active:
                original = self.originals.pop(path, None)
                if original is not None:
                    self.homes.pop(path).copy_(original)
                continue
            parameter = active[0].parameters[path]
            if path not in self.originals:
                self.originals[path] = parameter.detach().cpu().clone()
                self.homes[path] = parameter
            moved = [entry for entry in active if entry.strength != 0.0]
            base = self.originals[path].to(parameter.device)
            if len(moved) == 1:
                base = moved[0].weight(path, base)
            elif moved:
                exact = base if base.dtype == torch.float64 else base.float()
                base = exact + sum(entry.weight(path, base) - exact for entry in moved)
            if not bool(torch.isfinite(base).all()):
                raise AdapterError(f"the adapted weight {path} is not finite; use a smaller strength")
            parameter.copy_(base)


def _check_weight(path, parameter):
    kind = type(parameter.data).__name__
    if parameter.device.type == "meta":
        raise AdapterError(f"the weight {path} is not in memory; load the adapter before offloading the model")
    plain = type(parameter.data) is torch.Tensor and parameter.dtype.is_floating_point
    if not plain or parameter.dtype.itemsize < 2:
        raise AdapterError(f"the weight {path} is a {kind} of {parameter.dtype}; load the adapter before quantizing")
    if parameter.ndim not in (2, 4):
        raise AdapterError(f"the weight {path} has {parameter.ndim} axes, and methods adapt 2 or 4")
