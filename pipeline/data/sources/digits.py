"""scikit-learn's `load_digits`: 1,797 real 8x8 grey images of handwritten digits, no download."""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.data.sources.base import Item, hold_out


class Digits:
    scattered = False

    def __init__(self, held_out: float) -> None:
        self.classes = [str(digit) for digit in range(10)]
        self.held_out = held_out

    def items(self) -> list[Item]:
        from sklearn.datasets import load_digits

        target = load_digits().target
        items = [
            Item(sample_id=f"digits-{i:05d}", label=int(label), split="train", ref=str(i))
            for i, label in enumerate(target)
        ]
        return hold_out(items, self.held_out)

    def read(self, items: Sequence[Item]) -> Iterator[np.ndarray]:
        """uint8 (8, 8, 1); the set's ink values 0..16 become round(v * 255 / 16)."""
        from sklearn.datasets import load_digits

        pixels = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
        for item in items:
            yield pixels[int(item.ref)]
