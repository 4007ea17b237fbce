"""Which weights are kept and when it is no use going on; test_proportion.py has what settled means."""

from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.stopping_rule import SettleRule

# step, samples still sampled of 200 (None: the check failed), retained right of 200
Check = tuple[int, int | None, int]


def watch(checks: list[Check], **settings: float | int | None) -> SettleRule:
    rule = SettleRule(**{"target": 0.05, "patience_steps": 8, "floor_patience": 3, **settings})  # type: ignore[arg-type]
    for step, drawn, right in checks:
        if drawn is None:
            rule.miss(step)
        else:
            rule.observe(step, proportion(drawn, 200), proportion(right, 200))
    return rule


def test_the_best_settled_check_is_kept_not_the_last() -> None:
    """Retention falls away inside the hold window: what was best there stays; noise alone lets later checks
    in."""
    rule = watch([(2, 150, 200), (4, 0, 199), (6, 0, 198), (8, 0, 170), (10, 0, 160), (12, 0, 150)])
    assert (rule.stopped, rule.settled_step, rule.best_step) == ("settled", 4, 6)
    rule = watch([(2, 150, 200), (4, 0, 199), (6, 0, 200), (8, 0, 198), (10, 0, 199), (12, 0, 198)])
    assert (rule.settled_step, rule.best_step) == (4, 12)


def test_slow_decline_is_held_against_the_best_of_the_stretch() -> None:
    """Each check is within noise of the one before it, the last is far below the first."""
    rule = watch([(step, 0, 200 - 3 * (step - 2)) for step in range(2, 12)], patience_steps=100)
    assert rule.best_step is not None and rule.best_step < 8


def test_after_a_rebound_the_new_stretch_decides() -> None:
    rule = watch([(2, 0, 200), (4, 60, 200)])
    assert (rule.best_step, rule.settled_step) == (2, None)
    rule = watch(
        [(2, 0, 200), (4, 60, 200), (6, 0, 180), (8, 0, 181), (10, 0, 182), (12, 0, 183), (14, 0, 184)]
    )
    assert (rule.settled_step, rule.best_step) == (6, 14)


def test_a_run_that_crosses_and_rebounds_is_not_settled() -> None:
    rule = watch([(step, 0 if step in (4, 6) else 30, 200) for step in range(2, 40, 2)])
    assert (rule.first_crossing_step, rule.settled_step, rule.stopped) == (4, None, None)


def test_a_settled_run_goes_on_until_its_images_look_like_the_exchange_class() -> None:
    """The last two checks decide: a passing high one, or some before it was settled, end nothing."""

    def after(*found: float | None, alike: float | None = 0.5) -> SettleRule:
        rule = SettleRule(target=0.05, patience_steps=4, alike=alike)
        for index, exchange_fidelity in enumerate(found):
            rule.observe(2 * index + 2, proportion(0, 200), proportion(200, 200), exchange_fidelity)
        return rule

    rule = after(0.6, 0.6, 0.4, 0.45)
    assert (rule.settled_step, rule.best_step, rule.stopped) == (2, 8, None)
    assert after(0.6, 0.6, 0.4, 0.45, 0.5).stopped is None, "one check alone may be luck"
    rule = after(0.6, 0.6, 0.4, 0.45, 0.5, 0.7)
    assert (rule.settled_step, rule.best_step, rule.stopped) == (2, 12, "settled")
    assert after(0.6, 0.6).stopped is None, "it has not held long enough"
    assert after(0.0, None, 0.0, alike=None).stopped == "settled"
    rule.miss(14)
    assert rule.settled_step is None and rule.stopped is None and rule.found_alike == 0


def test_the_guard_stops_a_run_that_breaks_what_is_to_be_kept() -> None:
    """Three checks in a row below the bound, beyond noise; a passing dip stops nothing."""
    rule = watch([(2, 190, 198), (4, 150, 100), (6, 100, 90), (8, 60, 80)], retention_floor=0.7)
    assert (rule.stopped, rule.best_step, rule.settled_step) == ("retention_floor", 2, None)
    checks = [(2, 190, 198), (4, 150, 100), (6, 100, 190), (8, 60, 80), (10, 50, 80)]
    assert watch(checks, retention_floor=0.7).stopped is None
    # within noise of 0.7
    checks = [(2, 190, 198), (4, 150, 133), (6, 100, 133), (8, 60, 133)]
    assert watch(checks, retention_floor=0.7).stopped is None
    assert watch([(2, 190, 198), (4, 150, 100), (6, 100, 90), (8, 60, 80)]).stopped is None


def test_checks_are_a_budget() -> None:
    assert watch([(2, 150, 200), (4, 140, 200)], max_checks=3).stopped is None
    rule = watch([(2, 150, 200), (4, 140, 200), (6, 130, 200)], max_checks=3)
    assert (rule.stopped, rule.best_step) == ("checks", 6)


def test_a_check_that_failed_settles_nothing() -> None:
    held = [(2, 0, 200), (4, 0, 200), (6, 0, 200), (8, 0, 200), (10, 0, 200)]
    assert watch(held).settled_step == 2
    missing: list[Check] = [(s, None, 0) if s == 8 else (s, d, r) for s, d, r in held]
    rule = watch(missing)
    assert (rule.settled_step, rule.stopped) == (None, None)
    assert watch([*missing, (12, 0, 200), (14, 0, 200), (16, 0, 200), (18, 0, 200)]).settled_step == 10
    assert watch([(step, None, 0) for step in range(2, 40, 2)]).settled_step is None
