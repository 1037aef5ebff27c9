"""How a language model encodes prompts: two arguments of a diffusers pipeline, which adapter files hold."""

import inspect

from .errors import AdapterError
from .settings import Number

_FIELDS = ("text_encoder_out_layers", "max_sequence_length")


def read_prompt_encoding(value, where):
    """The fields that a file names: hidden states as a tuple, and the most tokens. Both may be missing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AdapterError(f"{where}: the field `prompt_encoding` is no table; the file is damaged")
    found = {}
    for field, given in value.items():
        name = f"{where}: prompt_encoding.{field}"
        if field not in _FIELDS:
            raise AdapterError(f"{name} is unknown; the file is of a newer version of soda")
        if field == "max_sequence_length":
            found[field] = Number(1, 1 << 20).read(given, name)
        elif isinstance(given, list) and 0 < len(given) <= 1024:
            found[field] = tuple(Number(0, 1024).read(layer, name) for layer in given)
        else:
            raise AdapterError(f"{name} is {given!r}, and it has to be a list of hidden states")
    return found


def arguments(pipeline, encoding):
    """The arguments that a call of the pipeline needs, as its defaults are others."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    needed = {}
    for field, value in encoding.items():
        default = parameters[field].default if field in parameters else None
        default = tuple(default) if isinstance(default, list) else default
        if default != value:
            needed[field] = value
    return needed
