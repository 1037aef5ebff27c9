"""Times a divan bench of this workspace in turns with something else, so that both meet the same machine.

    cargo bench --workspace --no-run        names the executables
"""

import os
import re
import statistics
import subprocess

UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def bench(executable: str, name: str, samples: int, threads: int) -> float:
    """The median of `samples` of one bench, in seconds."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    command = [executable, "--bench", "--exact", "--sample-count", str(samples), name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # fastest, slowest, median, mean
    value, unit = re.findall(r"([\d.]+) (s|ms|µs) ", run.stdout)[2]
    return float(value) * UNITS[unit]


def pairs(what: str, ours, theirs, rounds: int) -> None:
    """Prints the medians of `rounds` turns of each, in seconds, and the median of their ratios."""
    ours, theirs = zip(*((ours(), theirs()) for _ in range(rounds)))
    ratios = sorted(t / o for o, t in zip(ours, theirs))
    print(f"{what}: soda {statistics.median(ours):.3f} s, PyTorch {statistics.median(theirs):.3f} s, "
          f"soda is {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)
