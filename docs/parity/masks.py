"""Masked losses and their gradients by PyTorch, in float64.

    python docs/parity/masks.py
        writes crates/soda-train/tests/fixtures/masks.json

Masks, predictions and targets are formulas that the test repeats. The mask is reduced and applied as kohya's sd-scripts do
(`interpolate(mode="area")`, a factor on the squared error, the mean over all latents), its floor and norm
are OneTrainer's (`masked_losses`).
"""

import json
from pathlib import Path

import torch
from torch.nn.functional import interpolate, logsigmoid

SHAPE, BETA, FLOOR = (3, 4, 6, 8), 3.0, 0.1
WEIGHTS = [0.5, 0.25, 0.125]  # as min-SNR and a prior would give


def wave(pace, size):
    i = torch.arange(torch.Size(SHAPE).numel(), dtype=torch.float64)
    return ((i * pace).sin() * size).float().double().reshape(SHAPE)


def main():
    x, y = torch.arange(64).reshape(1, 64), torch.arange(48).reshape(48, 1)
    masks = [(7 * x + 13 * y * y + 31 * i) % (256 >> i) for i in range(3)]
    mask = interpolate(torch.stack(masks)[:, None].double() / 255, size=SHAPE[2:], mode="area")
    clamped = mask.clamp(FLOOR, 1)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    cases = []
    for normalize in (False, True):
        counts = clamped / clamped.mean((1, 2, 3), keepdim=True) if normalize else clamped
        for loss in ("mse", "dco"):
            prediction = wave(0.37, 1.0).requires_grad_()
            errors = lambda p: ((p - wave(0.11, 0.9)).square() * counts).mean((1, 2, 3))
            each = errors(prediction)
            if loss == "dco":
                each = -logsigmoid(-BETA * (each - errors(wave(0.23, 1.1))))
            value = (each * weights).sum()
            value.backward()
            gradient = [float(f"{g:.9e}") for g in prediction.grad.flatten().tolist()]
            cases.append({"loss": loss, "normalize": normalize, "weights": WEIGHTS, "value": value.item(),
                          "gradient": gradient})
    fixture = Path(__file__).parents[2] / "crates/soda-train/tests/fixtures/masks.json"
    fixture.write_text(json.dumps(cases) + "\n")
    print(fixture.stat().st_size, "bytes", [case["value"] for case in cases])


main()
