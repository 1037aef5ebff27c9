"""A step of training on the bundled model, `cargo bench --bench train` and diffusers with PEFT in turns.

    pip install torch diffusers transformers peft
    cargo bench --workspace --bench train --no-run
    python docs/parity/train_speed.py EXECUTABLE THREADS ROUNDS

LoRA of rank 4 on all attention projections, batch 5, AdamW, gradients clipped to norm 1.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from beside import bench, pairs

MODEL = Path(__file__).resolve().parents[2] / "examples/toybox/base/unet"
BATCH, STEPS = 5, 15


def main() -> None:
    executable, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(MODEL, torch_dtype=torch.float32)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    noisy, target = torch.randn(2, BATCH, 4, 16, 16)
    text = torch.randn(BATCH, 77, 160)
    timesteps = torch.tensor([17, 250, 500, 733, 999])

    def step() -> float:
        start = time.perf_counter()
        loss = torch.nn.functional.mse_loss(unet(noisy, timesteps, text).sample, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - start

    # The first ones allocate.
    [step() for _ in range(3)]
    ours = lambda: bench(executable, "train::step", STEPS, threads)
    pairs(f"{threads} threads, a step", ours, lambda: statistics.median(step() for _ in range(STEPS)), rounds)


if __name__ == "__main__":
    main()
