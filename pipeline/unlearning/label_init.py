"""Where a run starts: at the base weights, or with the forgotten labels already where their exchange classes
are sampled.

The label table is (classes, D), one embedding a class.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def start_at_exchange(table: Tensor, exchange: Mapping[int, Sequence[int]], push: float) -> None:
    """Move every forgotten row c of the label `table` (classes, D), in place, to e + push (e - c), e its
    exchange class's row.

    With push 0 this is the minimum of L_x against a teacher (the student under c predicts what the base
    predicts under e), reached without a step and without touching what other labels sample. `push` goes on in
    the same direction, away from c, where the base itself mixes the two classes up. Raises `ValueError` for a
    class without exactly one exchange class.
    """
    for c, targets in exchange.items():
        if len(targets) != 1:
            raise ValueError(
                f"request.exchange: class {c} has {len(targets)} exchange classes, expected one with"
                " method.label_init exchange"
            )
        e = table[targets[0]]
        table[c] = e + push * (e - table[c])
