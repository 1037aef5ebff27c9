"""The dynamic maps of bitsandbytes' 8-bit optimizers, for crates/soda-optim/src/adamw_8bit.rs.

    pip install torch bitsandbytes
    python docs/parity/adamw8.py
"""

import json
from pathlib import Path

from bitsandbytes.functional import create_dynamic_map

FIXTURE = Path(__file__).resolve().parents[2] / "crates/soda-optim/tests/fixtures/adamw8.json"


def main() -> None:
    maps = {name: create_dynamic_map(signed) for name, signed in [("signed", True), ("unsigned", False)]}
    maps = {name: [float(f"{x:.9g}") for x in values] for name, values in maps.items()}
    FIXTURE.write_text(json.dumps(maps))


if __name__ == "__main__":
    main()
