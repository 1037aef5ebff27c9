"""Generation with the bundled model, `cargo bench --bench generate` and diffusers in turns.

    pip install torch diffusers transformers
    cargo bench --workspace --bench generate --no-run
    python docs/parity/speed.py EXECUTABLE THREADS ROUNDS
"""

import sys
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from beside import bench, pairs

MODEL = Path(__file__).resolve().parents[2] / "examples/toybox/base"


def main() -> None:
    executable, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def theirs(batch: int) -> float:
        start = time.perf_counter()
        pipeline(["a photo of a red mug"] * batch, num_inference_steps=30, guidance_scale=5.0)
        return time.perf_counter() - start

    for batch in [1, 8]:
        # The first one allocates.
        theirs(batch)
        ours = lambda: bench(executable, f"generate::generate::{batch}", 1, threads)
        pairs(f"{threads} threads, batch {batch}, 30 steps", ours, lambda: theirs(batch), rounds)


if __name__ == "__main__":
    main()
