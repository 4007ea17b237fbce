"""How many workers a run may use: the lanes are dealt out evenly, so their number has to divide them."""

from pipeline.config import UnlearnConfig


def usable_world(lanes: int, alive: int) -> int:
    """The largest number of workers, at most `alive`, that divides the lanes."""
    return max(world for world in range(1, alive + 1) if lanes % world == 0)


def micro_batches(config: UnlearnConfig, rows: int) -> int:
    """Into how many equal parts a worker cuts its `rows` of each kind.

    An elastic run with fewer workers than it may have has more rows on each: they are cut so that none holds
    more at once than it would in full company.
    """
    train, optim = config.train, config.optim
    held = optim.micro_batch or rows
    if train.fewest < train.most and optim.micro_batch is None:
        held = optim.batch_size // usable_world(config.partition.lanes, train.most)
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= held)


def shares(config: UnlearnConfig, world: int) -> int:
    """How many workers' shares of the batch each of `world` workers has: more than one in an elastic run that
    is short of workers.

    Worked off one by one in `share_order` they give what the full company gives, to the bit, which needs
    powers of two; 1 otherwise.
    """
    train = config.train
    full = usable_world(config.partition.lanes, train.most)
    count, rest = divmod(full, world)
    powers = full & (full - 1) == 0 and not rest
    return count if train.fewest < train.most and powers and not config.method.hat_weight else 1


def share_order(count: int, lanes: int, each: int) -> list[int]:
    """Where in a worker's rows (`lanes` lanes of `each` rows, in turn) the rows of its `count` shares lie,
    share after share.

    Share j is every `count`-th lane from the j-th on, as the worker `j * world` further on would have it. The
    order of the shares is the one in which neighbours, then pairs of them are added up just as those workers'
    gradients are.
    """
    order = [0]
    while len(order) < count:  # 0 2 1 3, then 0 4 2 6 1 5 3 7: each and the one half of them further on
        order = [2 * j for j in order] + [2 * j + 1 for j in order]
    return [lane * each + row for j in order for lane in range(j, lanes, count) for row in range(each)]
