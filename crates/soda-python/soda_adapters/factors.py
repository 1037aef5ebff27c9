"""The sizes of Kronecker factors for a width, as the `soda` binary chooses them."""

import math


def factor_sizes(n, count):
    """`count` ascending factors of `n` with the least sum of squares; fewer if `n` has fewer prime factors."""
    count = max(min(count, _primes(n)), 1)
    best = None

    def descend(rest, left, least, prefix, cost):
        nonlocal best
        if left == 1:
            if rest >= least and (best is None or cost + rest * rest < best[0]):
                best = (cost + rest * rest, [*prefix, rest])
            return
        # Largest first: nearly equal factors are found early, and cut the other branches.
        for factor in range(_root(rest, left), least - 1, -1):
            if rest % factor or (best is not None and cost + factor * factor * left >= best[0]):
                continue
            descend(rest // factor, left - 1, factor, [*prefix, factor], cost + factor * factor)

    descend(n, count, 2, [], 0)
    return best[1] if best else [n]


def sizes_of(rotation, width):
    """The sizes for a width by the settings of a rotation, which may name them."""
    named = next((sizes for sizes in rotation["sizes"] if math.prod(sizes) == width), None)
    return named or factor_sizes(width, rotation["factors"])


def _root(n, k):
    """The largest `r` with `r^k <= n`."""
    root = round(n ** (1 / k)) + 1
    while root > 1 and root**k > n:
        root -= 1
    return root


def _primes(n):
    """The number of prime factors of `n` with their multiplicities."""
    count, prime = 0, 2
    while prime * prime <= n:
        if n % prime:
            prime += 1
        else:
            n //= prime
            count += 1
    return count + (n > 1)
