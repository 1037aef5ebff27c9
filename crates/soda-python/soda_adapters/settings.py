"""The settings of every method, as adapter files hold them: each field with its kind, default and range.

A field that is unknown or out of range is refused by name.
"""

import math

from .errors import AdapterError

REQUIRED = object()


class Number:
    """A number between two bounds, or `None` where it is optional."""

    def __init__(self, least, most, default=REQUIRED, whole=True, optional=False):
        self.least, self.most, self.default, self.whole, self.optional = least, most, default, whole, optional

    def read(self, value, name):
        if value is None and self.optional:
            return None
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.least <= value <= self.most:
            kind = "a whole number" if self.whole else "a number"
            raise AdapterError(f"{name} is {value!r}, and it has to be {kind} from {self.least} to {self.most}")
        return value


class Choice:
    """One of several words, or a truth value."""

    def __init__(self, *values, default=REQUIRED, optional=False):
        self.values, self.default, self.optional = values, default, optional

    def read(self, value, name):
        if value is None and self.optional:
            return None
        if not any(value is known or (isinstance(value, str) and value == known) for known in self.values):
            raise AdapterError(f"{name} is {value!r}, and it has to be one of {list(self.values)}")
        return value


class Table:
    """A table with fields of its own; `tag` names the field that chooses among several tables."""

    def __init__(self, fields, default=REQUIRED, optional=False, tag=None):
        self.fields, self.default, self.optional, self.tag = fields, default, optional, tag

    def read(self, value, name):
        if value is None and self.optional:
            return None
        if not isinstance(value, dict):
            raise AdapterError(f"{name} is {value!r}, and it has to be a table")
        fields = self.fields
        if self.tag:
            kind = value.get(self.tag)
            if not isinstance(kind, str) or kind not in fields:
                raise AdapterError(f"{name}.{self.tag} is {kind!r}, and it has to be one of {sorted(fields)}")
            fields = {self.tag: Choice(kind), **fields[kind]}
        for field in value:
            if field not in fields:
                raise AdapterError(f"{name}.{field} is unknown; the file is of a newer version of soda")
        found = {}
        for field, kind in fields.items():
            given = value.get(field, kind.default)
            if given is REQUIRED:
                raise AdapterError(f"{name}.{field} is missing; the file is damaged")
            found[field] = kind.read(given, f"{name}.{field}")
        return found


class Map:
    """A table from any words to values of one kind."""

    def __init__(self, kind):
        self.kind, self.default = kind, {}

    def read(self, value, name):
        if not isinstance(value, dict):
            raise AdapterError(f"{name} is {value!r}, and it has to be a table")
        return {key: self.kind.read(entry, f"{name}.{key}") for key, entry in value.items()}


class Sizes:
    """Lists of the sizes of factors."""

    default = []

    def read(self, value, name):
        size = Number(1, 1 << 20)
        if not isinstance(value, list) or not all(isinstance(sizes, list) and sizes for sizes in value):
            raise AdapterError(f"{name} is {value!r}, and it has to be a list of lists of numbers")
        found = [[size.read(entry, name) for entry in sizes] for sizes in value]
        if any(math.prod(sizes) > 1 << 20 for sizes in found):
            raise AdapterError(f"{name} has sizes of a width above 1048576")
        return found


class Pair:
    """Two numbers of one kind."""

    def __init__(self, kind):
        self.kind = kind

    def read(self, value, name):
        if not isinstance(value, list) or len(value) != 2:
            raise AdapterError(f"{name} is {value!r}, and it has to be a list of two numbers")
        return [self.kind.read(entry, name) for entry in value]


_FLOAT = 3.5e38


def _flag(default=False):
    return Choice(False, True, default=default)


def _seed():
    return Number(0, 2**64 - 1, default=0)


def _alpha():
    return Number(-_FLOAT, _FLOAT, default=None, whole=False, optional=True)


_SIDE = Choice("input", "output", "both", default="input")
_CAYLEY = Table({"exact": {}, "neumann": {"terms": Number(3, 100)}}, default={"form": "neumann", "terms": 5}, tag="form")

_MASK = Table(
    {"min_rank": Number(0, 4096, default=1), "alpha": Number(1e-300, 100, default=1.0, whole=False)},
    default=None,
    optional=True,
)

_ROTATION = Table(
    {
        "structure": Choice(
            "kronecker", "kronecker-permuted", "group-and-shuffle", "subspace", "householder", default="kronecker"
        ),
        "subspace": Choice("gradient", "activations", "principal", default=None, optional=True),
        "rank": Number(1, 4096, default=None, optional=True),
        "numbers": Number(0, 2**53, default=None, optional=True),
        "ranks": Map(Number(0, 4096)),
        "scales": _flag(),
        "block_size": Number(2, 4096, default=None, optional=True),
        "seed": Number(0, 2**64 - 1, default=None, optional=True),
        "factors": Number(1, 100, default=3),
        "sizes": Sizes(),
        "side": _SIDE,
        "parametrization": Choice("stiefel", "cayley", "unconstrained", default="stiefel"),
    },
    optional=True,
)

_SPECTRUM = Table(
    {
        "basis": Choice("svd", "qr", default="svd"),
        "shift": Table(
            {
                "diagonal": {"init": Number(-_FLOAT, _FLOAT, whole=False)},
                "low-rank": {"rank": Number(1, 4096), "seed": Number(0, 2**64 - 1)},
            },
            default={"form": "diagonal", "init": 0.0},
            tag="form",
        ),
        "rank": Number(1, 4096, default=None, optional=True),
        "select": Choice("leading", "gradient", default=None, optional=True),
    },
    optional=True,
)

METHODS = {
    "soda": Table(
        {
            "rotation": _ROTATION,
            "spectrum": _SPECTRUM,
            "calibration": Table(
                {"draws": Number(1, 100_000, default=64), "seed": _seed()}, default=None, optional=True
            ),
            "output_scale": _flag(),
            "timestep_mask": _MASK,
        }
    ),
    "lora": Table(
        {
            "rank": Number(1, 1 << 20, default=16),
            "alpha": _alpha(),
            "rank_stabilized": _flag(),
            "rank_pattern": Map(Number(1, 1 << 20)),
            "alpha_pattern": Map(Number(-_FLOAT, _FLOAT, whole=False)),
            "init": Choice("kaiming", "pissa", default="kaiming"),
            "dora": _flag(),
            "timestep_mask": _MASK,
            "seed": _seed(),
        }
    ),
    "loha": Table({"rank": Number(1, 4096, default=8), "alpha": _alpha(), "seed": _seed()}),
    "lokr": Table(
        {
            "rank": Number(1, 1 << 20, default=8),
            "alpha": _alpha(),
            "factor": Number(1, 2**53, default=None, optional=True),
            "sizes": Map(Pair(Number(1, 1 << 20))),
            "decompose_both": _flag(),
            "seed": _seed(),
        }
    ),
    "oft": Table(
        {
            "block_size": Number(2, 4096, default=32),
            "cayley": _CAYLEY,
            "block_share": _flag(),
            "constraint": Number(1e-300, _FLOAT, default=None, whole=False, optional=True),
            "side": _SIDE,
        }
    ),
    "boft": Table({"block_size": Number(2, 4096, default=8), "levels": Number(1, 100, default=2)}),
    "full": Table({}),
}


def read_method(value, name):
    """Returns the name of the method and its settings with their defaults."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise AdapterError(f"{name} has no name of a method; the file is damaged")
    method = value["name"]
    if method not in METHODS:
        raise AdapterError(f"the method `{method}` is not one of {', '.join(METHODS)}; update soda-adapters")
    settings = METHODS[method].read({key: entry for key, entry in value.items() if key != "name"}, name)
    if method == "soda":
        _check_soda(settings, name)
    if method == "lora" and settings["timestep_mask"] and settings["dora"]:
        raise AdapterError(f"{name}: `timestep_mask` and `dora` exclude each other; the file is damaged")
    return method, settings


def _check_soda(settings, name):
    rotation, spectrum = settings["rotation"], settings["spectrum"]
    if not (rotation or spectrum or settings["output_scale"]):
        raise AdapterError(f"{name} trains nothing; the file is damaged")
    if rotation and rotation["scales"] and rotation["structure"] != "subspace":
        raise AdapterError(f"{name}.rotation.scales belongs to the structure `subspace`; the file is damaged")
    if spectrum and spectrum["rank"] and (spectrum["basis"], spectrum["shift"]["form"]) != ("svd", "diagonal"):
        raise AdapterError(f"{name}.spectrum.rank belongs to a diagonal shift of an SVD; the file is damaged")
    if settings["timestep_mask"]:
        low_rank = not rotation or rotation["structure"] == "subspace"
        if not low_rank or (spectrum and spectrum["rank"] is None) or settings["output_scale"]:
            raise AdapterError(
                f"{name}.timestep_mask belongs to a rotation of a subspace and a shift of `spectrum.rank`, without "
                "`output_scale`; the file is damaged"
            )


def needs_its_base(method, settings):
    """Whether the adapter means something on the base that it was trained on alone."""
    if method == "lora":
        return settings["dora"] or settings["init"] == "pissa"
    return method not in ("loha", "lokr", "full")
