"""A long evaluation in portions: what one gave lies in storage, and after a kill the next one is taken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models import weights
from pipeline import storage
from pipeline.evaluation.partials import Partials, Ranks, add_into

IMAGES = 4096  # of a portion


@dataclass(frozen=True)
class Portions:
    """Under `uri`, which belongs to one evaluation of certain weights; all ranks read, the first writes."""

    uri: str
    images: int = IMAGES

    def count(self, images: int) -> int:
        return max(1, -(-images // self.images))

    def summed(
        self,
        count: int,
        ranks: Ranks,
        device: torch.device,
        compute: Callable[[int], Mapping[str, Tensor]],
    ) -> Partials:
        """The sum over `count` portions of `compute(number)`, which gives what is reduced over the ranks
        already; portions that lie there are read. Collective; flags are reduced on `device`."""
        whole: Partials = {}
        for number in range(count):
            path = storage.join(self.uri, f"{number:05d}-of-{count:05d}.safetensors")
            part: Mapping[str, Tensor]
            if self._there(path, ranks, device):
                part = weights.from_bytes(storage.read_bytes(path), path)
            else:
                part = compute(number)
                if ranks.rank == 0:
                    storage.write_bytes(path, weights.to_bytes(part))
            for name, value in part.items():
                add_into(whole, name, value)
        return whole

    def remove(self) -> None:
        storage.remove(self.uri)

    @staticmethod
    def _there(path: str, ranks: Ranks, device: torch.device) -> bool:
        """As the first rank sees it: all of them take the same turn."""
        flag = torch.tensor(float(ranks.rank == 0 and storage.exists(path)), device=device)
        return bool(ranks.sum(flag))
