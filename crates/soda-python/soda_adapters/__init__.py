"""Adapters of SODA in Python: reading files, and loading them onto diffusers pipelines and torch modules.

    pipeline = StableDiffusionPipeline.from_pretrained("models/sd15")
    loaded = soda_adapters.load(pipeline, "adapter.safetensors", strength=0.8)
    soda_adapters.set_strength(pipeline, 0.5)
    soda_adapters.unload(pipeline)

`read` and the formulas need numpy and safetensors alone; `load` needs torch.
"""

from .errors import AdapterError
from .files import AdapterFile, Part, read, write

__version__ = "0.1.0"
__all__ = ["AdapterError", "AdapterFile", "Part", "load", "read", "set_strength", "unload", "write"]


def load(target, file, strength=1.0, **options):
    """Loads an adapter onto a diffusers pipeline or a torch module. See `soda_adapters.loading.load`."""
    return _loading().load(target, file, strength, **options)


def set_strength(target, strength):
    """Changes the strength of the adapters of a pipeline or module. See `soda_adapters.loading.set_strength`."""
    _loading().set_strength(target, strength)


def unload(target):
    """Restores the base weights of a pipeline or module, to the bit. See `soda_adapters.loading.unload`."""
    _loading().unload(target)


def _loading():
    try:
        from . import loading
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise AdapterError("loading an adapter needs torch: run `pip install 'soda-adapters[torch]'`") from None
    return loading
