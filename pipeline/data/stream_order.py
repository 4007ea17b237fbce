"""At which place of the retain stream each row stands.

The rows, grouped by class, go by in passes of n. Each pass is its own permutation, in which every class is
spread evenly, so that a cut-off pass is still balanced. Two permutations do that: `sorted_order` makes a
whole pass (24 bytes a row), `computed_order` computes the places that are asked for (nothing a row).
"""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.seeding import seed_of

ROUNDS = 8  # of the Feistel network
GOLDEN = (math.sqrt(5) - 1) / 2


def sorted_order(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """(total,) indices into the candidate rows whose classes are `labels` (grouped by class): position p
    holds row order[p].

    The i-th of a class's m rows falls at a random place in the i-th of m equal stretches of the pass.
    """
    n = len(labels)
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    ends = np.r_[starts[1:], n]
    passes = []
    for number in range(-(-total // n)):
        random = np.random.default_rng(seed_of(seed, "retain", number))
        place = np.empty(n)
        for start, end in zip(starts, ends):
            m = end - start
            place[start:end] = (random.permutation(m) + random.random(m)) / m
        passes.append(np.argsort(place, kind="stable"))
    return np.concatenate(passes)[:total]


def computed_order(class_rows: Sequence[int], total: int, seed: int) -> np.ndarray:
    """(total,) indices into candidate rows of which each class has `class_rows`, one class after the other.

    A walk through the rows by a step of n times the golden ratio, prime to n, comes by all of them once, and
    by each class at almost equal distances. Stretches as long as there are classes are shuffled, and so are
    the rows of a class, by keyed networks. Expects n below 2^31.
    """
    sizes = np.asarray(class_rows, np.int64)
    ends = np.cumsum(sizes)
    n, stretch = int(ends[-1]), len(sizes)
    step = round(n * GOLDEN)
    while math.gcd(step, n) != 1:
        step += 1
    passes = []
    for number in range(-(-total // n)):
        places = np.arange(min(n, total - number * n))
        first = places - places % stretch
        inside = shuffled(
            places - first, np.minimum(stretch, n - first), seed_of(seed, "stretch", number), first
        )
        walk = (seed_of(seed, "walk", number) % n + (first + inside) * step) % n
        label = np.searchsorted(ends, walk, side="right")
        start = ends[label] - sizes[label]
        passes.append(start + shuffled(walk - start, sizes[label], seed_of(seed, "class", number), label))
    return np.concatenate(passes)


def shuffled(index: np.ndarray, size: np.ndarray, seed: int, key: np.ndarray) -> np.ndarray:
    """(N,) places of `index` in permutations of 0 .. `size` - 1, one for each `key`.

    Cycle-walking over a Feistel network: x = left * a + right with a the smallest number whose square is at
    least the size, left and right taken modulo a; a result outside is put in again until it is inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    result = np.array(index, np.int64)
    side = np.ceil(np.sqrt(size)).astype(np.int64)
    keys = mixed(np.asarray(key, np.uint64) + np.uint64(seed))
    outside = np.arange(len(result))
    while len(outside):
        a, own = side[outside], keys[outside]
        left, right = np.divmod(result[outside], a)
        for number in range(ROUNDS):
            drawn = mixed(own + right.astype(np.uint64) * np.uint64(ROUNDS) + np.uint64(number))
            left, right = right, (left + (drawn % a.astype(np.uint64)).astype(np.int64)) % a
        result[outside] = left * a + right
        outside = outside[result[outside] >= size[outside]]
    return result


def mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser of uint64 `x` (Steele, Lea and Flood, 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
