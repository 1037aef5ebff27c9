"""Prodigy (arXiv 2306.06101) on a small quadratic, in double precision, by the authors' own code.

Needs torch and prodigyopt 1.1.2. Writes crates/soda-optim/tests/fixtures/prodigy.json: for each case the
estimate `d` after every step and the parameters after the last. Bias correction is on, as in diffusers'
training scripts; with a warm-up the learning rate is left out of the estimate (`safeguard_warmup`).
"""

import json
from pathlib import Path

import torch
from prodigyopt import Prodigy

STEPS = 60
OUT = Path(__file__).parents[2] / "crates/soda-optim/tests/fixtures/prodigy.json"
torch.set_default_dtype(torch.float64)
g = torch.Generator().manual_seed(0)
single = lambda *shape: torch.randn(*shape, generator=g).float().double()
shapes = {"a": (3, 4), "b": (5,)}
start = {name: single(*shape) for name, shape in shapes.items()}
target = {name: single(*shape) for name, shape in shapes.items()}
h = {name: single(*shape).abs() + 0.1 for name, shape in shapes.items()}
h = {name: value.float().double() for name, value in h.items()}
flat = lambda values: {name: value.flatten().tolist() for name, value in values.items()}
cases = []
for warmup, decay in [(0, 0.0), (10, 0.0), (0, 0.5)]:
    p = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = Prodigy(p.values(), use_bias_correction=True, weight_decay=decay, safeguard_warmup=warmup > 0)
    ds = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = min((step + 1) / (warmup + 1), 1.0)
        optimizer.zero_grad()
        sum((h[n] * (p[n] - target[n]).square()).sum() / 2 for n in shapes).backward()
        optimizer.step()
        ds.append(optimizer.param_groups[0]["d"])
    end = {name: value.detach() for name, value in p.items()}
    cases.append({"warmup": warmup, "decay": decay, "d": ds, "end": flat(end)})
    print(warmup, decay, ds[-1])
OUT.write_text(json.dumps({"start": flat(start), "target": flat(target), "h": flat(h), "cases": cases}))
