"""Momentum Stiefel Adam for rotations and AdamW for other parameters, as one optimizer of PyTorch.

For a square `X` on the manifold with gradient `G` (Kong, Wang and Tao, ICLR 2023, arXiv 2205.14173):

    A = XᵀG        g = A - Aᵀ        Y ← β1 Y - (1 - β1) g        p ← β2 p + (1 - β2) g²
    X ← X (I + lr / (1 - β1ᵗ) · Y / (√(p / (1 - β2ᵗ)) + ε))       X ← X (XᵀX)^(-1/2)

The last line is by Newton and Schulz. Matrices of one size are stepped together.
"""

import torch

# The number that keeps a division finite: of the released code of SODA, and of AdamW.
MANIFOLD_EPSILON, EPSILON = 1e-5, 1e-8


class SodaAdam(torch.optim.Optimizer):
    """An optimizer for `Adapters.parameter_groups`. Groups with `manifold=True` have square matrices.

    The matrices, `[n, n]` or `[b, n, n]`, have to start orthogonal. They stay so to rounding, below 2e-6.
    """

    def __init__(self, params, lr=5e-3, betas=(0.9, 0.999), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "manifold": False})
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["manifold"] and (parameter.ndim < 2 or parameter.shape[-1] != parameter.shape[-2]):
                    raise ValueError(f"a parameter on the manifold is square, and one has {list(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            step = self._stiefel if group["manifold"] else self._adamw
            batches = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["step"] = 0
                        state["first"] = torch.zeros_like(parameter)
                        state["second"] = torch.zeros_like(parameter)
                    state["step"] += 1
                    key = (tuple(parameter.shape), parameter.device, state["step"])
                    batches.setdefault(key, []).append(parameter)
            for (_, _, time), parameters in batches.items():
                step(group, parameters, time)
        return loss

    def _moments(self, group, parameters, gradient, sign):
        beta_1, beta_2 = group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        first = torch.stack([state["first"] for state in states]) * beta_1 + gradient * (sign * (1 - beta_1))
        second = torch.stack([state["second"] for state in states]) * beta_2 + gradient.square() * (1 - beta_2)
        for state, one, two in zip(states, first, second):
            state["first"].copy_(one)
            state["second"].copy_(two)
        return first, second

    def _stiefel(self, group, parameters, time):
        beta_1, beta_2 = group["betas"]
        x = torch.stack(parameters)
        a = x.mT @ torch.stack([parameter.grad for parameter in parameters])
        first, second = self._moments(group, parameters, a - a.mT, -1.0)
        scaled = first / ((second / (1 - beta_2**time)).sqrt() + MANIFOLD_EPSILON)
        x = polar(x + x @ (scaled * (group["lr"] / (1 - beta_1**time))))
        for parameter, values in zip(parameters, x):
            parameter.copy_(values)

    def _adamw(self, group, parameters, time):
        beta_1, beta_2 = group["betas"]
        x = torch.stack(parameters)
        gradient = torch.stack([parameter.grad for parameter in parameters])
        first, second = self._moments(group, parameters, gradient, 1.0)
        scaled = (first / (1 - beta_1**time)) / ((second / (1 - beta_2**time)).sqrt() + EPSILON)
        x = x * (1 - group["lr"] * group["weight_decay"]) - scaled * group["lr"]
        for parameter, values in zip(parameters, x):
            parameter.copy_(values)


def polar(x):
    """The nearest orthogonal matrices, by Newton and Schulz, for a step along a tangent from orthogonal matrices."""
    gram = x.mT @ x
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    bound = gram.abs().sum(-1).amax(-1)[..., None, None]
    # The error `e = 1 - σ²` of a singular value becomes `e² (3 + e) / 4`.
    error = max(1.0 - 1.0 / max(float(bound.max()), 1.0), 0.0)
    x, gram = x / bound.sqrt(), gram / bound
    x = x + x @ ((identity - gram) * 0.5)
    for _ in range(60):
        error = error * error * (3.0 + error) / 4.0
        if not error > 1e-9:
            break
        x = x + x @ ((identity - x.mT @ x) * 0.5)
    return x
