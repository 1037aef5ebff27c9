"""Six training steps of every method and loss on the bundled model, with diffusers' UNet, in float64.

    python docs/reference/training.py
        writes crates/soda-train/tests/fixtures/training.safetensors: noisy latents, text states and targets
        of six steps; and for every case the adapter it starts from, its losses, and where it ends.

The optimizers are written out from their papers' formulas (momentum Stiefel Adam, arXiv 2205.14173; AdamW by
torch). Needs torch, diffusers 0.42, safetensors.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch.func import functional_call
from torch.nn.functional import logsigmoid, relu

ROOT = Path(__file__).parents[2]
STEPS, BATCH, LR, BETA = 6, 3, 5e-3, 1000.0
PATHS = [f"mid_block.attentions.0.transformer_blocks.0.{a}.{p}.weight"
         for a in ("attn1", "attn2") for p in ("to_q", "to_k")]
FACTORS = {160: [4, 5, 8]}


def orthogonal(x):
    u, _, vt = torch.linalg.svd(x)
    return u @ vt


def start(method, w, g):
    """An adapter a little way from the identity, by name of the parameter; w is [in, out]."""
    n, k = w.shape[0], min(w.shape)
    normal = lambda *shape, scale: torch.randn(*shape, generator=g, dtype=torch.float64) * scale
    if method == "lora":
        return {"a": normal(n, 4, scale=n**-0.5), "b": normal(4, w.shape[1], scale=0.02)}
    parts = {}
    if method != "svdiff":
        for i, size in enumerate(FACTORS[n]):
            parts[f"rotation.factors.{i}"] = orthogonal(torch.eye(size) + normal(size, size, scale=0.02))
    parts["spectrum.delta"] = normal(k, scale=0.02)
    return parts


def basis(method, w):
    if method in ("soda", "svdiff"):
        return torch.linalg.svd(w, full_matrices=False)
    if method == "soda-qr":
        q, r = torch.linalg.qr(w)
        return q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return None


def adapted(method, w, basis, parts):
    if method == "lora":
        return w + parts["a"] @ parts["b"]
    delta = parts["spectrum.delta"]
    if method == "soda-qr":
        shift = torch.nn.functional.pad(basis * delta, (0, w.shape[1] - basis.shape[1]))
    else:
        u, s, vt = basis
        shift = (u * (relu(s + delta) - s)) @ vt
    w = w + shift
    if method == "svdiff":
        return w
    rotation = torch.ones(1, 1)
    for name in sorted(n for n in parts if n.startswith("rotation")):
        rotation = torch.kron(rotation, parts[name])
    return rotation @ w


class StiefelAdam:
    """Square matrices, canonical metric, Euler's map."""

    def __init__(self, points):
        self.points, self.time = points, 0
        self.moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in points]

    @torch.no_grad()
    def step(self):
        self.time += 1
        for i, x in enumerate(self.points):
            a = x.T @ x.grad
            g = a - a.T
            y, p = self.moments[i]
            y, p = 0.9 * y - 0.1 * g, 0.999 * p + 0.001 * g * g
            self.moments[i] = (y, p)
            z = LR / (1 - 0.9**self.time) * y / ((p / (1 - 0.999**self.time)).sqrt() + 1e-5)
            x.copy_(orthogonal(x + x @ z))


def main():
    torch.set_default_dtype(torch.float64)
    unet = UNet2DConditionModel.from_pretrained(ROOT / "examples/toybox/base", subfolder="unet")
    unet = unet.double().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    c = unet.config
    latents = lambda: torch.randn(STEPS, BATCH, c.in_channels, c.sample_size, c.sample_size, generator=g)
    # Rounded to what the file holds, so that both sides compute on the same numbers.
    single = lambda x: x.float().double()
    noisy, target = single(latents()), single(latents())
    text = single(torch.randn(BATCH, 12, c.cross_attention_dim, generator=g))
    t = torch.randint(0, 1000, (STEPS, BATCH), generator=g)
    out = {"noisy": noisy, "target": target, "text": text, "timesteps": t}
    weights = {path: unet.get_parameter(path).T.clone() for path in PATHS}

    for method in ("soda", "soda-qr", "svdiff", "lora"):
        bases = {path: basis(method, w) for path, w in weights.items()}
        first = {path: {k: single(v) for k, v in start(method, w, g).items()} for path, w in weights.items()}
        for loss_name in ("mse", "dco"):
            parts = {p: {k: v.clone().requires_grad_() for k, v in ps.items()} for p, ps in first.items()}
            flat = [(k, v) for ps in parts.values() for k, v in ps.items()]
            rotations = StiefelAdam([v for k, v in flat if k.startswith("rotation")])
            others = torch.optim.AdamW([v for k, v in flat if not k.startswith("rotation")], lr=LR,
                                       weight_decay=1e-4)
            losses = []
            for step in range(STEPS):
                def errors(replaced):
                    sample = functional_call(unet, replaced, (noisy[step], t[step], text)).sample
                    return (sample - target[step]).square().mean((1, 2, 3))

                new = {p: adapted(method, w, bases[p], parts[p]).T for p, w in weights.items()}
                error = errors(new)
                if loss_name == "dco":
                    error = -logsigmoid(-BETA * (error - errors({})))
                loss = error.mean()
                losses.append(loss.item())
                for _, v in flat:
                    v.grad = None
                loss.backward()
                torch.nn.utils.clip_grad_norm_([v for _, v in flat], 1.0)
                rotations.step()
                others.step()
            case = f"{method}/{loss_name}"
            print(case, losses)
            out[f"{case}/losses"] = torch.tensor(losses)
            for path in PATHS:
                for name, value in parts[path].items():
                    out[f"{method}/start/{path}.adapter.{name}"] = first[path][name]
                    out[f"{case}/end/{path}.adapter.{name}"] = value.detach()
    fixture = ROOT / "crates/soda-train/tests/fixtures/training.safetensors"
    save_file({k: v.float().contiguous() if v.is_floating_point() else v.int().contiguous()
               for k, v in out.items()}, fixture)
    print(fixture.stat().st_size, "bytes")


main()
