"""Where the host reads what a device computed, and so waits for it: counted on any machine."""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# calls that need the numbers themselves, or a shape that depends on them
READS = (
    *("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "is_nonzero"),
    *("nonzero", "argwhere", "masked_select", "unique", "equal", "allclose", "__array__"),
)


class HostReads(TorchFunctionMode):
    """Context: counts such calls by name. `aside`: tensors that lie on the host whatever the device is, such
    as the step counts of an optimiser."""

    def __init__(self, aside: Collection[Tensor] = ()) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._aside = {id(tensor) for tensor in aside}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if name == "__get__" or not isinstance(first, Tensor) or id(first) in self._aside:
            return func(*args, **(kwargs or {}))
        by_mask = name in ("__getitem__", "__setitem__") and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8)
            for one in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if name in READS or by_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def host_side(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """An optimiser's step counts."""
    return [state["step"] for state in optimizer.state.values() if isinstance(state.get("step"), Tensor)]
