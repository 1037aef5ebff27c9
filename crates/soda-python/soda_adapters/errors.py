"""The error of this package."""


class AdapterError(ValueError):
    """A file, a model or a setting that cannot be used. The message names the thing and the remedy."""
