"""The 1,000 classes of ImageNet-1K in the order that published models number them."""

from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def class_lines() -> list[str]:
    """One `<wnid> <name>` a class, the label is the index."""
    return (Path(__file__).parent / "imagenet_classes.txt").read_text().splitlines()
