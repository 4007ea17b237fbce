"""Which retained classes are sampled where all of them would be too many."""

from typing import Any

from pipeline.config import UnlearnConfig, parse
from pipeline.runs.preflight import drawn_classes

RETAINED = [label for label in range(100) if label != 7]


def config(count: int | None, seed: int = 0, **request: Any) -> UnlearnConfig:
    asked = {"classes": [7], "exchange": {7: 42}, **request}
    return parse(UnlearnConfig, {"seed": seed, "request": asked, "evaluate": {"retain_classes": count}})


def test_the_exchange_class_and_the_nearest_are_always_among_them() -> None:
    some = drawn_classes(config(10), RETAINED, [3, 42, 5])
    assert (
        len(some) == 10 == len(set(some))
        and some == sorted(some)
        and {3, 5, 42} <= set(some)
        and 7 not in some
    )
    assert 42 in drawn_classes(config(10), RETAINED, [3, 5])
    assert drawn_classes(config(10, seed=1), RETAINED, [3, 42, 5]) != some, "the others go by seed"
    assert drawn_classes(config(1), RETAINED, [3, 5]) == [42]
    assert {3, 5} < set(drawn_classes(config(3, exchange={}), RETAINED, [3, 5]))


def test_all_are_drawn_where_nothing_is_said() -> None:
    assert drawn_classes(config(None), RETAINED, [3]) == drawn_classes(config(500), RETAINED, [3]) == RETAINED
