"""Every random number of a run comes from named keys, never from rank or call order.

This is what makes world sizes comparable and a continued run equal to an uninterrupted one.
"""

import hashlib

import torch


def seed_of(*keys: int | str) -> int:
    """A 63-bit number from any sequence of ints and strings, the same on every machine and in every process.

    torch's CPU generator starts from the lower 32 bits of it (docs/numerics.md, random numbers).
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by `keys`. Draw on the CPU and move: the numbers are then the same on every
    device."""
    return torch.Generator().manual_seed(seed_of(*keys))
