"""Builds the wheel of the whole project: maturin, and before it a sentence about what is missing.

maturin would download a Rust toolchain on its own where there is none. A compilation of many minutes is no surprise
that an installation should have, so this module refuses and names the two remedies.
"""

import sys
from pathlib import Path

import maturin
from maturin import build_editable, build_sdist, build_wheel, get_requires_for_build_sdist
from rust_toolchain import cargo_version, missing

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

def get_requires_for_build_wheel(config_settings=None):
    """What the build needs of Python, once Rust is there."""
    reason = missing(Path("Cargo.toml").read_text(), cargo_version())
    if reason:
        sys.exit(f"\nsoda-adapters: {reason}\n")
    return maturin.get_requires_for_build_wheel(config_settings)


get_requires_for_build_editable = get_requires_for_build_wheel
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
