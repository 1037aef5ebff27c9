"""Reading and writing adapter files: the format `soda-adapter`, versions 1 to 3.

An adapter file is one safetensors file. Its tensors have the names `<component>.<path of the weight>.<method>.<name>`,
and `<component>.tokens.<token>` for new words. docs/reference/files.md describes the format.
"""

import json
import os
import stat
from dataclasses import dataclass, field

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import AdapterError
from .prompt_encoding import read_prompt_encoding
from .settings import read_method

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")
SIGNS = "svd: largest entry of each column of U positive; qr: diagonal of R not negative"
MAX_HEADER = 64 << 20
MAX_FILE = 64 << 30
MAX_RANK = 8
DTYPES = ("F32", "F16", "F64")


@dataclass
class Part:
    """The adapter of one network."""

    method: str
    settings: dict
    targets: list
    base_hash: str
    # The method as the file has it, with its name.
    recipe: dict = field(default_factory=dict)
    # The tensors by path of the weight, then by name.
    weights: dict = field(default_factory=dict)


@dataclass
class AdapterFile:
    """The contents of an adapter file."""

    # The adapters by component: `unet`, `text_encoder`, `text_encoder_2`, `transformer`.
    parts: dict
    # The vectors `[k, width]` of new words: by token, then by text encoder.
    tokens: dict = field(default_factory=dict)
    base: str = ""
    trigger: list = field(default_factory=list)
    training: object = None
    # The changed fields of a diffusers scheduler configuration, or None.
    schedule: object = None
    # How prompts were encoded: arguments of a call of the pipeline.
    prompt_encoding: dict = field(default_factory=dict)
    path: str = "the adapter"


def read(path):
    """Reads an adapter file. Raises `AdapterError` with the field or tensor that cannot be used."""
    path = os.fspath(path)
    _check_file(path)
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            # The description is read first: another file is refused by its format.
            adapter = _header(metadata, path)
            for key in file.keys():
                part = file.get_slice(key)
                if part.get_dtype() not in DTYPES:
                    raise AdapterError(f"{path}: the tensor {key} is {part.get_dtype()}; adapter files have F32")
                if len(part.get_shape()) > MAX_RANK:
                    raise AdapterError(f"{path}: the tensor {key} has {len(part.get_shape())} axes")
                tensors[key] = file.get_tensor(key).astype(np.float32)
                if not np.isfinite(tensors[key]).all():
                    raise AdapterError(f"{path}: the tensor {key} has an entry that is no finite number")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a safetensors file: {error}") from None
    for key, tensor in tensors.items():
        _place(adapter, key, tensor)
    return adapter


def _check_file(path):
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise AdapterError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}") from None
    if status.st_size > MAX_FILE or length > MAX_HEADER:
        raise AdapterError(f"{path} is larger than an adapter file can be")


def _json(metadata, name, path):
    try:
        return json.loads(metadata[name])
    except KeyError:
        raise AdapterError(f"{path} is no adapter of soda: its metadata has no `{name}`") from None
    except (ValueError, RecursionError):
        raise AdapterError(f"{path}: the field `{name}` of the metadata is no JSON; the file is damaged") from None


def _header(metadata, path):
    for name in ("format", "version", "base"):
        if name not in metadata:
            raise AdapterError(
                f"{path} is no adapter of soda: its metadata has no `{name}`; files of other tools go "
                "through `soda import`"
            )
    if metadata["format"] != "soda-adapter":
        raise AdapterError(f"{path} has the format `{metadata['format']}`, not `soda-adapter`")
    version = metadata["version"]
    if version not in ("1", "2", "3"):
        raise AdapterError(f"{path} has version {version}, and this package reads 1 to 3; update soda-adapters")
    if metadata.get("signs", SIGNS) != SIGNS:
        raise AdapterError(f"{path} has the sign rule `{metadata['signs']}`, which this package does not know")
    if version == "1":
        parts = {
            "unet": {
                "method": _json(metadata, "config", path),
                "targets": _json(metadata, "targets", path),
                "base_hash": metadata.get("base_hash"),
            }
        }
    else:
        parts = _json(metadata, "parts", path)
    if not isinstance(parts, dict):
        raise AdapterError(f"{path}: the field `parts` is no table; the file is damaged")
    trigger = _json(metadata, "trigger", path)
    if not isinstance(trigger, list) or not all(isinstance(words, str) for words in trigger):
        raise AdapterError(f"{path}: the field `trigger` is no list of words; the file is damaged")
    return AdapterFile(
        parts={component: _part(component, value, path) for component, value in parts.items()},
        base=metadata["base"],
        trigger=trigger,
        training=_json(metadata, "training", path),
        schedule=_json(metadata, "schedule", path) if "schedule" in metadata else None,
        prompt_encoding=read_prompt_encoding(
            _json(metadata, "prompt_encoding", path) if "prompt_encoding" in metadata else None, path
        ),
        path=path,
    )


def _part(component, value, path):
    if component not in COMPONENTS:
        raise AdapterError(f"{path}: the network `{component}` is not one of {', '.join(COMPONENTS)}")
    if not isinstance(value, dict) or set(value) != {"method", "targets", "base_hash"}:
        raise AdapterError(f"{path}: the part `{component}` has to have method, targets and base_hash, and no more")
    targets, base_hash = value["targets"], value["base_hash"]
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets) or not targets:
        raise AdapterError(f"{path}: the targets of `{component}` are no list of patterns; the file is damaged")
    if not isinstance(base_hash, str):
        raise AdapterError(f"{path}: the part `{component}` has no base_hash; the file is damaged")
    try:
        method, settings = read_method(value["method"], f"{component}.method")
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None
    return Part(method, settings, targets, base_hash, recipe=value["method"])


def _place(adapter, key, tensor):
    """Puts a tensor where its name says."""
    component, _, inside = key.partition(".")
    if component in ("text_encoder", "text_encoder_2") and inside.startswith("tokens.") and tensor.ndim == 2:
        adapter.tokens.setdefault(inside.removeprefix("tokens."), {})[component] = tensor
        return
    part = adapter.parts.get(component)
    path, found, name = inside.partition(f".{part.method}.") if part else ("", "", "")
    if not found:
        raise AdapterError(f"{adapter.path}: the tensor {key} belongs to no part of the file")
    part.weights.setdefault(path, {})[name] = tensor


def _given(settings):
    """The settings without absent ones, but for the two of SODA that have no default in files."""
    plain = {name: _given(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in plain.items() if value is not None or name in ("rotation", "spectrum")}


def write(adapter, path):
    """Writes an adapter file in version 3. `path` never holds an incomplete file."""
    path = os.fspath(path)
    tensors = {}
    for component, part in adapter.parts.items():
        for weight, named in part.weights.items():
            for name, tensor in named.items():
                tensors[f"{component}.{weight}.{part.method}.{name}"] = tensor
    for token, vectors in adapter.tokens.items():
        for component, tensor in vectors.items():
            tensors[f"{component}.tokens.{token}"] = tensor
    tensors = {key: np.ascontiguousarray(tensor, dtype=np.float32) for key, tensor in tensors.items()}
    parts = {
        component: {
            # A part that was made in Python may have no recipe, and the whole settings are one.
            "method": part.recipe or {"name": part.method, **_given(part.settings)},
            "targets": part.targets,
            "base_hash": part.base_hash,
        }
        for component, part in adapter.parts.items()
    }
    metadata = {
        "format": "soda-adapter",
        "version": "3",
        "parts": json.dumps(parts),
        "base": adapter.base,
        "trigger": json.dumps(adapter.trigger),
        "training": json.dumps(adapter.training),
        "schedule": json.dumps(adapter.schedule),
        "prompt_encoding": json.dumps(adapter.prompt_encoding),
        "signs": SIGNS,
    }
    staged = f"{path}.{os.getpid()}.tmp"
    try:
        save_file(tensors, staged, metadata)
        os.replace(staged, path)
    except OSError as error:
        raise AdapterError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if os.path.exists(staged):
            os.remove(staged)
