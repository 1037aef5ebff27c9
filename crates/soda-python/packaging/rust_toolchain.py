"""What a build of the command `soda` lacks of Rust."""

import re
import shutil
import subprocess

ALONE = "or run `pip install ./crates/soda-python`, which installs the Python package without the command"


def cargo_version():
    """What `cargo --version` prints; `None` without cargo."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return None
    return subprocess.run([cargo, "--version"], capture_output=True, text=True, check=False).stdout


def missing(manifest, found):
    """What keeps the command from being built, or `None`. `found` is what `cargo --version` prints."""
    needed = re.search(r'^rust-version = "(\d+)\.(\d+)', manifest, re.MULTILINE)
    needed = tuple(map(int, needed.groups()))
    words = f"Rust {needed[0]}.{needed[1]} or newer"
    if found is None:
        return (
            f"the command `soda` is compiled from Rust, and `cargo` is not on the PATH. Install {words} from "
            f"https://rustup.rs, {ALONE}."
        )
    version = re.match(r"cargo (\d+)\.(\d+)", found)
    if version and tuple(map(int, version.groups())) < needed:
        return f"the command `soda` needs {words}, and this is {found.strip()}. Run `rustup update`, {ALONE}."
    return None
