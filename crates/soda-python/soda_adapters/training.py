"""Training SODA in PyTorch, on any module with linear layers or convolutions.

    adapters = attach(unet, {"name": "soda", "rotation": {}, "spectrum": {}}, ["attention"], component="unet")
    optimizer = SodaAdam(adapters.parameter_groups())
    ...                                   # loss.backward(); optimizer.step(); optimizer.zero_grad()
    adapters.save("adapter.safetensors", base="sd15", trigger=["sks mug"])

The adapters are parametrizations of the weights (`torch.nn.utils.parametrize`), so that no layer changes. `method` is
the table `[method]` of `soda train`. The file is that of the `soda` binary, which generates with it and merges it.
"""

import contextlib
import json

import torch
from torch.nn.utils import parametrize

from .errors import AdapterError
from .factors import sizes_of
from .files import AdapterFile, Part, read, write
from .formulas import adapted, basis_of, formula, to_matrix
from .optimizer import SodaAdam
from .settings import read_method
from .targets import OF_CHECKSUMS, base_hash, file_path, select

__all__ = ["Adapters", "Calibration", "SodaAdam", "attach", "resume"]

# Tensors of files that are not trained.
FROZEN = (".basis", "truncated_spectrum.left", "truncated_spectrum.right", "truncated_spectrum.s")


def attach(module, method, targets, *, component="unet", directions=None):
    """Freezes `module`, attaches initial adapters to the targeted weights and returns `Adapters`.

    `targets` are presets, such as `attention`, or regular expressions over the names of parameters. A fresh adapter
    changes no bit of the output. `directions` are those of `Calibration.directions`, for a subspace of the gradient.
    """
    name, settings = read_method(method, "method")
    if name != "soda":
        raise AdapterError(f"the method `{name}` is not trained here; PEFT trains it, and `soda import` reads its files")
    _check(settings, directions)
    weights = _weights(module, targets)
    tensors = {}
    for path, (layer, leaf) in weights.items():
        tensors[path] = _initial(settings, path, getattr(layer, leaf).detach(), directions)
    part = Part(name, settings, list(targets), "", recipe=_plain(method), weights=tensors)
    return Adapters(module, component, part, weights)


def resume(module, file, *, component="unet"):
    """Attaches the adapters of a file to its base, to train them further, and returns `Adapters`."""
    adapter = file if isinstance(file, AdapterFile) else read(file)
    if component not in adapter.parts:
        raise AdapterError(f"{adapter.path} has no part {component!r}; it has {list(adapter.parts)}")
    part = adapter.parts[component]
    if part.method != "soda":
        raise AdapterError(f"{adapter.path} has the method `{part.method}`, which is not trained here")
    weights = _weights(module, part.targets)
    found = Adapters(module, component, part, weights)
    if found.part.base_hash != part.base_hash:
        found.detach()
        raise AdapterError(f"{adapter.path} was trained on another base (`{adapter.base}`); load that base")
    return found


def _check(settings, directions):
    rotation, spectrum = settings["rotation"], settings["spectrum"]
    refusals = [(settings["timestep_mask"] is not None, "a `timestep_mask` needs `soda train`")]
    if rotation:
        measured = rotation["structure"] == "subspace" and rotation["subspace"] != "principal"
        refusals += [
            (rotation["structure"] == "householder", "reflections are not trained here; use PEFT's HRA"),
            (rotation["numbers"] is not None or rotation["ranks"], "`rotation.numbers` needs `soda train`; give a rank"),
            (rotation["subspace"] == "activations", "the subspace `activations` needs `soda train`"),
            (measured and directions is None, "a subspace of the gradient needs directions=Calibration.directions(…)"),
        ]
    if spectrum:
        refusals += [
            (spectrum["shift"]["form"] != "diagonal", "a low-rank shift needs `soda train`"),
            (spectrum["select"] == "gradient", "`spectrum.select` needs `soda train`"),
        ]
    for refused, reason in refusals:
        if refused:
            raise AdapterError(reason)


def _plain(method):
    """The method as a file holds it."""
    try:
        plain = json.loads(json.dumps(method))
    except (TypeError, ValueError) as error:
        raise AdapterError(f"the method has a value that a file cannot hold: {error}") from None
    # These fields have no default in files.
    return {"rotation": None, "spectrum": None, **plain}


def _weights(module, targets):
    """The layers and the names of the targeted weights, by path."""
    layers = {}
    for path, parameter in module.named_parameters():
        if ".parametrizations." in f".{path}":
            raise AdapterError(f"{path} is a parametrization already; detach it first")
        name, _, leaf = path.rpartition(".")
        layers[file_path(path)] = (module.get_submodule(name), leaf)
    shapes = {path: tuple(getattr(layer, leaf).shape) for path, (layer, leaf) in layers.items()}
    selected = select(targets, shapes)
    if not selected:
        raise AdapterError(f"the targets {list(targets)} select no weight of the {type(module).__name__}")
    for path in selected:
        if len(shapes[path]) not in (2, 4):
            raise AdapterError(f"the weight {path} has {len(shapes[path])} axes, and methods adapt 2 or 4")
    return {path: layers[path] for path in selected}


def _initial(settings, path, weight, directions):
    """The tensors of an adapter that changes nothing."""
    w = to_matrix(weight).float()
    shape, tensors = tuple(w.shape), {}
    rotation, spectrum = settings["rotation"], settings["spectrum"]
    truncated = spectrum and spectrum["rank"] is not None
    principal = rotation and rotation["structure"] == "subspace" and rotation["subspace"] == "principal"
    if truncated or principal:
        u, s, vt = torch.linalg.svd(w.double(), full_matrices=False)
    for side, prefix in enumerate(("rotation", "output_rotation")):
        if not rotation or rotation["side"] not in (("input", "output")[side], "both"):
            continue
        if rotation["structure"] != "subspace":
            tensors |= _product(rotation, prefix, shape[side])
            if rotation["structure"] != "kronecker":
                tensors |= _product(rotation, f"{prefix}.permuted.0", shape[side])
            continue
        rank = rotation["rank"] or int(sum(n * n for n in sizes_of(rotation, shape[side])) ** 0.5)
        if principal:
            basis = (u, vt.T)[side][:, :rank]
        else:
            found = directions.get(f"{path}.output" if side else path)
            if found is None or found.shape[0] != shape[side] or found.shape[1] < min(rank, shape[side]):
                raise AdapterError(f"the directions lack {min(rank, shape[side])} of {path}; measure them again")
            basis = found[:, :rank]
        tensors[f"{prefix}.basis"] = basis.float().contiguous()
        tensors |= _factors(rotation, prefix, [basis.shape[1]])
        if rotation["scales"]:
            tensors |= {f"{prefix}.scales.{name}": torch.ones(basis.shape[1]) for name in ("input", "output")}
    if truncated:
        k, start = min(spectrum["rank"], *shape), float(spectrum["shift"]["init"])
        parts = {"left": u[:, :k], "right": vt[:k].T, "s": s[:k], "delta": torch.full((k,), start)}
        tensors |= {f"truncated_spectrum.{name}": part.float().contiguous() for name, part in parts.items()}
    elif spectrum:
        tensors["spectrum.delta"] = torch.full((min(shape),), float(spectrum["shift"]["init"]))
    if settings["output_scale"]:
        tensors["output_scale"] = torch.ones(shape[1])
    return tensors


def _product(rotation, prefix, width):
    if rotation["structure"] != "group-and-shuffle":
        return _factors(rotation, prefix, sizes_of(rotation, width))
    from .formulas.blocks import nearest_divisor

    size = nearest_divisor(width, rotation["block_size"] or 32)
    start = torch.zeros(size, size) if rotation["parametrization"] == "cayley" else torch.eye(size)
    return {f"{prefix}.blocks": start.repeat(width // size, 1, 1)}


def _factors(rotation, prefix, sizes):
    kind = rotation["parametrization"]
    name = {"stiefel": "factors", "cayley": "generators", "unconstrained": "matrices"}[kind]
    start = torch.zeros if kind == "cayley" else lambda n, _: torch.eye(n)
    return {f"{prefix}.{name}.{index}": start(n, n) for index, n in enumerate(sizes)}


class SodaWeight(torch.nn.Module):
    """The parametrization of one weight: the base goes in, and the adapted weight comes out."""

    def __init__(self, settings, path, weight, tensors):
        super().__init__()
        self.strength, self.attributes = 1.0, {}
        device, kept = weight.device, {}
        for name, values in tensors.items():
            attribute = name.replace(".", "__")
            values = torch.as_tensor(values, dtype=torch.float32).to(device, copy=True)
            if name.endswith(FROZEN):
                self.register_buffer(attribute, values)
            else:
                self.register_parameter(attribute, torch.nn.Parameter(values))
            self.attributes[name] = attribute
            kept[name] = getattr(self, attribute)
        # Refuses tensors that do not fit. The formula of a step is made of the tensors as they are then.
        self.recipe = (settings, path, tuple(weight.shape))
        self.bases = basis_of(formula("soda", settings, path, kept, weight.shape), weight)
        for index, part in enumerate(self.bases or ()):
            self.register_buffer(f"basis_{index}", part.float(), persistent=False)

    def tensors(self):
        """The tensors by their names in files."""
        return {name: getattr(self, attribute) for name, attribute in self.attributes.items()}

    def forward(self, weight):
        if self.strength == 0.0:
            return weight
        settings, path, shape = self.recipe
        made = formula("soda", settings, path, self.tensors(), shape, check=False)
        basis = tuple(getattr(self, f"basis_{index}") for index in range(len(self.bases or ()))) or None
        return adapted(made, weight, self.strength, basis).to(weight.dtype)


class Adapters:
    """The adapters of a module, from `attach` or `resume`."""

    def __init__(self, module, component, part, weights):
        self.module, self.component = module, component
        module.requires_grad_(False)
        pairs = ((path, getattr(layer, leaf).detach().float().cpu().numpy()) for path, (layer, leaf) in weights.items())
        # A file that is resumed keeps the kind of its hash.
        found = base_hash(pairs, part.base_hash or OF_CHECKSUMS)
        self.part = Part(part.method, part.settings, part.targets, found, recipe=part.recipe)
        self.weights, self._layers = {}, {}
        for path, (layer, leaf) in weights.items():
            made = SodaWeight(part.settings, path, getattr(layer, leaf).detach(), part.weights.get(path, {}))
            self.weights[path] = made
        for path, (layer, leaf) in weights.items():
            parametrize.register_parametrization(layer, leaf, self.weights[path], unsafe=True)
            self._layers[path] = (layer, leaf)

    def parameter_groups(self, rotation_lr=5e-3, lr=5e-3, weight_decay=1e-4):
        """The groups for `SodaAdam`: the factors on the manifold, and the other parameters."""
        stiefel = (self.part.settings["rotation"] or {}).get("parametrization") == "stiefel"
        groups = [
            {"params": [], "lr": rotation_lr, "manifold": True},
            {"params": [], "lr": lr, "weight_decay": weight_decay, "manifold": False},
        ]
        for weight in self.weights.values():
            for name, tensor in weight.tensors().items():
                if isinstance(tensor, torch.nn.Parameter):
                    on_manifold = stiefel and (".factors." in name or name.endswith(".blocks"))
                    groups[0 if on_manifold else 1]["params"].append(tensor)
        return [group for group in groups if group["params"]]

    def parameters(self):
        """All trained parameters."""
        return [parameter for group in self.parameter_groups() for parameter in group["params"]]

    def set_strength(self, strength):
        """Sets the strength of all adapters: 0 is the base, 1 the trained adapter."""
        for weight in self.weights.values():
            weight.strength = float(strength)

    @contextlib.contextmanager
    def disabled(self):
        """The base model, within a `with` statement."""
        before = [weight.strength for weight in self.weights.values()]
        self.set_strength(0.0)
        try:
            yield
        finally:
            for weight, strength in zip(self.weights.values(), before):
                weight.strength = strength

    def file(self, base="", trigger=(), training=None):
        """The adapters as the contents of a file. `base` names the base model, for people."""
        weights = {
            path: {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in weight.tensors().items()}
            for path, weight in self.weights.items()
        }
        part = Part(**{**vars(self.part), "weights": weights})
        return AdapterFile({self.component: part}, base=base, trigger=list(trigger), training=training)

    def save(self, path, base="", trigger=(), training=None):
        """Writes an adapter file, which `soda generate --adapter` and `soda_adapters.load` take."""
        write(self.file(base, trigger, training), path)

    def detach(self):
        """Removes the adapters. The weights are those of the base, to the bit; they stay frozen."""
        for layer, leaf in self._layers.values():
            parametrize.remove_parametrizations(layer, leaf, leave_parametrized=False)
        self._layers = {}


class Calibration:
    """Measures where the gradient of the loss lies at the base model, for a rotation in a subspace.

        with Calibration(unet, ["attention"]) as calibration:
            for batch in batches:
                loss(unet, batch).backward()
        adapters = attach(unet, method, ["attention"], directions=calibration.directions(rank))

    The gradients of the targeted weights are kept until `directions`, in as much memory as the weights.
    """

    def __init__(self, module, targets):
        self.module, self.weights = module, _weights(module, targets)

    def __enter__(self):
        self.module.requires_grad_(False)
        for layer, leaf in self.weights.values():
            getattr(layer, leaf).requires_grad_(True).grad = None
        return self

    def __exit__(self, *_):
        self.module.requires_grad_(False)

    def directions(self, rank):
        """The leading left singular vectors `[n, rank]` of the gradient by rotations, `K = D - Dᵀ`.

        They are by path for inputs, and by `<path>.output` for outputs.
        """
        found = {}
        for path, (layer, leaf) in self.weights.items():
            weight = getattr(layer, leaf)
            if weight.grad is None:
                raise AdapterError(f"the weight {path} has no gradient; call backward within the calibration")
            w, gradient = to_matrix(weight.detach()).float(), to_matrix(weight.grad).float()
            weight.grad = None
            for key, product in ((path, gradient @ w.T), (f"{path}.output", w.T @ gradient)):
                generator = product - product.T
                if not bool(torch.isfinite(generator).all()):
                    raise AdapterError(f"the gradient of {path} is not finite; use a smaller loss scale")
                found[key] = torch.linalg.svd(generator.double())[0][:, :rank].float()
        return found
