"""Runs a command while all but some gigabytes of a GPU's memory are taken, as on a smaller card.

    python limit_memory.py 8 soda train --preset sdxl-8gb ...

A card of 8 GB has 8 GiB, of which about 0.3 GiB belong to the driver. The command's own CUDA context counts as well.
"""

import subprocess
import sys

import torch


def main():
    total = int(float(sys.argv[1]) * 2**30)
    reserved = 300 << 20
    free, _ = torch.cuda.mem_get_info()
    taken = []
    rest = free - (total - reserved)
    while rest > 0:
        part = min(rest, 1 << 30)
        taken.append(torch.empty(part, dtype=torch.uint8, device="cuda"))
        rest -= part
    free, _ = torch.cuda.mem_get_info()
    print(f"free: {free >> 20} MiB", file=sys.stderr, flush=True)
    sys.exit(subprocess.call(sys.argv[2:]))


if __name__ == "__main__":
    main()
