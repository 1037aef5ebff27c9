"""diffusers' generation with the bundled model, for comparison with `cargo bench --bench generate`.

    pip install torch diffusers transformers
    python docs/reference/speed.py [threads]
"""

import sys
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

MODEL = Path(__file__).resolve().parents[2] / "examples/toybox/base"
ROUNDS, STEPS = 5, 30


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    print(f"{torch.get_num_threads()} threads, {STEPS} steps, guidance 5, fastest of {ROUNDS}")
    for batch in [1, 8]:
        times = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            pipeline(["a photo of a red mug"] * batch, num_inference_steps=STEPS, guidance_scale=5.0)
            times.append(time.perf_counter() - start)
        # The first one allocates.
        print(f"batch {batch}: {min(times[1:]):.3f} s")


if __name__ == "__main__":
    main()
