"""How many workers a run may use: the lanes are dealt out evenly, so their number has to divide them."""

from pipeline.config import UnlearnConfig


def usable_world(lanes: int, alive: int) -> int:
    """The largest number of workers, at most `alive`, that divides the lanes."""
    return max(world for world in range(1, alive + 1) if lanes % world == 0)


def micro_batches(config: UnlearnConfig, rows: int) -> int:
    """Into how many equal parts a worker cuts its `rows` of each kind.

    An elastic run with fewer workers than it may have has more rows on each: they are cut so that none holds more at once
    than it would in full company.
    """
    train, optim = config.train, config.optim
    held = optim.micro_batch or rows
    if train.fewest < train.most and optim.micro_batch is None:
        held = optim.batch_size // usable_world(config.partition.lanes, train.most)
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= held)
