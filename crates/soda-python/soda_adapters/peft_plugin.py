"""SODA as a method of PEFT.

    from soda_adapters.peft_plugin import SodaConfig, adapter_file
    from peft import get_peft_model

    model = get_peft_model(unet, SodaConfig(target_modules=["to_q", "to_v"]))
    ...                                             # any optimizer
    model.save_pretrained("mug")                    # PeftModel.from_pretrained(unet, "mug") loads it
    soda_adapters.write(adapter_file(model, component="unet"), "mug.safetensors")

PEFT registers the methods of its own enumeration only, so that importing this module adds the name `SODA` to PEFT's
tables. Rotations are Cayley transforms by default, which stay orthogonal under any optimizer. With the parametrization
`stiefel` the optimizer has to be `soda_adapters.training.SodaAdam` with `parameter_groups(model)`.
"""

import copy
import warnings
from dataclasses import dataclass, field

import torch
from peft import mapping
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge

from .errors import AdapterError
from .files import AdapterFile, Part
from .settings import read_method
from .targets import base_hash, file_path
from .training import SodaWeight, _check, _initial, _plain

NAME, PREFIX = "SODA", "soda_"


@dataclass
class SodaConfig(PeftConfig):
    """The settings of SODA.

    `rotation`, `spectrum` and `output_scale` are the fields of the table `[method]` of `soda train`. A subspace of the
    gradient needs `soda_adapters.training`.
    """

    target_modules: list | str | None = field(default=None)
    exclude_modules: list | str | None = field(default=None)
    rotation: dict | None = field(default_factory=lambda: {"parametrization": "cayley"})
    spectrum: dict | None = field(default_factory=dict)
    output_scale: bool = field(default=False)
    modules_to_save: list | None = field(default=None)
    bias: str = field(default="none")

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = NAME
        if self.bias != "none":
            raise ValueError("SODA trains no bias; leave `bias` at `none`")
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)
        _check(self.settings()[1], None)

    def method(self):
        """The table `[method]`."""
        method = {"name": "soda", "rotation": self.rotation, "spectrum": self.spectrum}
        return {**method, "output_scale": True} if self.output_scale else method

    def settings(self):
        """The name of the method and its settings with defaults."""
        return read_method(self.method(), "SodaConfig")


class SodaLayer(torch.nn.Module, BaseTunerLayer):
    """A linear layer or convolution with adapters. Those that are active add their changes."""

    adapter_layer_names = ("soda_weight",)
    other_param_names = ()

    def __init__(self, base_layer, adapter_name, config, path):
        super().__init__()
        self.base_layer = base_layer
        self.soda_weight = torch.nn.ModuleDict()
        self._disable_adapters, self.merged_adapters = False, []
        self._before = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, path)

    def update_layer(self, adapter_name, config, path):
        _, settings = config.settings()
        weight = self.get_base_layer().weight.detach()
        if self.merged:
            raise AdapterError(f"{path} has a merged adapter; unmerge it before adding another")
        if weight.device.type == "meta" or not weight.dtype.is_floating_point:
            raise AdapterError(f"the weight {path} is a {weight.dtype} on {weight.device}; SODA decomposes plain weights")
        made = SodaWeight(settings, path, weight, _initial(settings, path, weight, None))
        self.soda_weight[adapter_name] = made
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def adapted_weight(self, names):
        """`W0 + Σ (Wᵢ - W0)`."""
        weight = self.get_base_layer().weight
        names = [name for name in names if name in self.soda_weight]
        if len(names) == 1:
            return self.soda_weight[names[0]](weight)
        return weight + sum(self.soda_weight[name](weight) - weight for name in names) if names else weight

    def set_scale(self, adapter_name, scale):
        self.soda_weight[adapter_name].strength = float(scale)

    def scale_layer(self, scale):
        for name in self.active_adapters:
            if name in self.soda_weight:
                self.soda_weight[name].strength *= float(scale)

    def unscale_layer(self, scale=None):
        for name in self.active_adapters:
            if name in self.soda_weight:
                strength = self.soda_weight[name].strength
                self.soda_weight[name].strength = 1.0 if scale is None else strength / scale

    def forward(self, x, *args, **kwargs):
        if self.disable_adapters and self.merged:
            self.unmerge()
        base = self.get_base_layer()
        if self.disable_adapters or self.merged or not any(name in self.soda_weight for name in self.active_adapters):
            return self.base_layer(x, *args, **kwargs)
        weight = self.adapted_weight(self.active_adapters)
        return torch.func.functional_call(base, {"weight": weight}, (x, *args), kwargs)

    @torch.no_grad()
    def merge(self, safe_merge=False, adapter_names=None):
        for name in check_adapters_to_merge(self, adapter_names) or ():
            if name in self.soda_weight:
                weight = self.get_base_layer().weight
                base = self._before[0] if self._before else weight.detach().clone()
                merged = weight + (self.soda_weight[name](base) - base) if self._before else self.soda_weight[name](base)
                if safe_merge and not bool(torch.isfinite(merged).all()):
                    raise ValueError(f"the merged weight of the adapter {name} is not finite")
                self._before.append(weight.detach().clone())
                weight.copy_(merged)
                self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self):
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.")
            return
        self.get_base_layer().weight.copy_(self._before[0])
        self._before, self.merged_adapters = [], []

    def get_delta_weight(self, adapter_name):
        weight = self._before[0] if self._before else self.get_base_layer().weight
        return self.soda_weight[adapter_name](weight) - weight


class SodaModel(BaseTuner):
    """The tuner that puts `SodaLayer` into the place of linear layers and convolutions."""

    prefix = PREFIX
    tuner_layer_cls = SodaLayer
    target_module_mapping = {}

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **_):
        path = f"{current_key}.weight"
        if isinstance(target, SodaLayer):
            target.update_layer(adapter_name, config, path)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        plain = isinstance(base, torch.nn.Linear) or (isinstance(base, torch.nn.Conv2d) and base.groups == 1)
        if not plain:
            raise TypeError(f"{current_key} is a {type(base).__name__}, and SODA adapts Linear and Conv2d with one group")
        made = SodaLayer(target, adapter_name, config, path)
        if adapter_name not in self.active_adapters:
            made.requires_grad_(False)
        self._replace_module(parent, target_name, made, target)


def parameter_groups(model, rotation_lr=5e-3, lr=5e-3, weight_decay=1e-4):
    """The groups for `SodaAdam`, of the trained parameters of a PEFT model."""
    groups = [
        {"params": [], "lr": rotation_lr, "manifold": True},
        {"params": [], "lr": lr, "weight_decay": weight_decay, "manifold": False},
    ]
    on_manifold = set()
    for layer in model.modules():
        if isinstance(layer, SodaWeight) and (layer.recipe[0]["rotation"] or {}).get("parametrization") == "stiefel":
            tensors = layer.tensors().items()
            on_manifold |= {id(tensor) for name, tensor in tensors if ".factors." in name or name.endswith(".blocks")}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[0 if id(parameter) in on_manifold else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def adapter_file(model, component="unet", adapter_name="default", base="", trigger=()):
    """The adapter of a PEFT model as the contents of a file of the `soda` binary.

    `component` names the network in the pipeline: `unet`, `text_encoder`, `text_encoder_2` or `transformer`.
    """
    config = model.peft_config[adapter_name]
    if config.peft_type != NAME:
        raise AdapterError(f"the adapter {adapter_name} has the method {config.peft_type}; `soda import` reads its files")
    if config.modules_to_save:
        raise AdapterError("a file of SODA has no other trained modules; leave `modules_to_save` out")
    weights, bases = {}, {}
    for layer in model.modules():
        if isinstance(layer, SodaLayer) and adapter_name in layer.soda_weight:
            made = layer.soda_weight[adapter_name]
            path = file_path(made.recipe[1])
            weights[path] = {name: tensor.detach().float().cpu().numpy() for name, tensor in made.tensors().items()}
            weight = layer._before[0] if layer._before else layer.get_base_layer().weight
            bases[path] = weight.detach().float().cpu().numpy()
    name, settings = config.settings()
    method = _plain(copy.deepcopy(config.method()))
    targets = [f"^{path.replace('.', chr(92) + '.')}$" for path in sorted(weights)]
    found = base_hash((path, bases[path]) for path in sorted(bases))
    part = Part(name, settings, targets, found, recipe=method, weights=weights)
    return AdapterFile({component: part}, base=base, trigger=list(trigger))


def _register():
    for table, entry in (
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, SodaConfig),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, SodaModel),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    ):
        table.setdefault(NAME, entry)


_register()
