"""T-LoRA's mask over timesteps (arXiv 2507.05964, eq. 4): how many directions a change has at a timestep.

    W(t) = W0 + a diag(m(t)) b,    mᵢ(t) = 1 for i < r(t), else 0
    r(t) = ⌊(r - r_min) (1 - t/1000)^α⌋ + r_min
"""

import numpy as np

# The largest timestep, at which a sample is noise.
LAST = np.float32(1000.0)


def active_directions(mask, timesteps, rank):
    """How many of `rank` directions are in use at each of the timesteps, in f32 as the `soda` binary has it."""
    left = LAST - np.asarray(timesteps, np.float32)
    masked = np.float32(max(rank - mask["min_rank"], 0))
    if mask["alpha"] == 1.0:
        # Whole timesteps give whole products, so that the division rounds no step away.
        share = left * masked / LAST
    else:
        share = np.maximum(left, np.float32(0)) / LAST
        share = share ** np.float32(mask["alpha"]) * masked
    return np.clip(np.floor(share) + mask["min_rank"], 0, rank).astype(np.int64)
