"""The fixed permutations of rotations, as index arrays: `(P w)[i] = w[sources[i]]`.

Files hold the seed of a random permutation and not its order, so the generator of the `soda` binary is repeated:
Fisher and Yates with ChaCha8, whose key is the SHA-256 of `permutation <seed> <width>`.
"""

import functools
import hashlib

import numpy as np


def inverse(sources):
    """The order of `Pᵀ`."""
    order = np.empty_like(sources)
    order[sources] = np.arange(len(sources))
    return order


@functools.lru_cache(maxsize=64)
def shuffle(width, size):
    """The perfect shuffle of `width` entries in blocks of `size` (GSOFT, arXiv 2406.10019)."""
    at = np.arange(width)
    return at % size * (width // size) + at // size


@functools.lru_cache(maxsize=256)
def butterfly(width, size, level):
    """PEFT's order of BOFT's `level`, counted from 0: of 2^level blocks, the even half blocks come first."""
    half, halves = size // 2, 2 << level
    at = np.arange(width)
    group = at - at % (half * halves)
    half_block, within = (at - group) // half, at % half
    source = np.where(half_block < halves // 2, 2 * half_block, 2 * half_block - halves + 1)
    return group + source * half + within


@functools.lru_cache(maxsize=64)
def random(width, seed):
    """The random permutation of a seed."""
    key = hashlib.sha256(f"permutation {seed} {width}".encode()).digest()
    draws = chacha8(key, max(width - 1, 0))
    sources = list(range(width))
    for last, draw in zip(range(width - 1, 0, -1), draws):
        other = int(draw) % (last + 1)
        sources[last], sources[other] = sources[other], sources[last]
    return np.array(sources, dtype=np.int64)


def chacha8(key, count):
    """The first `count` numbers of 64 bits of ChaCha with 8 rounds, counter 0 and stream 0."""
    blocks = (2 * count + 15) // 16
    state = np.zeros((16, blocks), dtype=np.uint32)
    state[:4] = np.frombuffer(b"expand 32-byte k", dtype="<u4")[:, None]
    state[4:12] = np.frombuffer(key, dtype="<u4")[:, None]
    state[12] = np.arange(blocks, dtype=np.uint64).astype(np.uint32)
    work = state.copy()
    for _ in range(4):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            _quarter_round(work, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            _quarter_round(work, a, b, c, d)
    words = (work + state).T.reshape(-1).astype(np.uint64)
    return (words[0::2] | words[1::2] << np.uint64(32))[:count]


def _quarter_round(x, a, b, c, d):
    for target, source, turned, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[target] += x[source]
        mixed = x[turned] ^ x[target]
        x[turned] = mixed << np.uint32(bits) | mixed >> np.uint32(32 - bits)
