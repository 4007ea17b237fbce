"""Samples drawn and judged: by label and seed alone, over any number of ranks; what is counted as forgotten
and as kept."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from distributed import run_world
from tiny import CLASSES, SIDE, tiny_batch, tiny_dit, tiny_judge

from pipeline.data.batch import Batch
from pipeline.evaluation.measure import Subject, feature_moments, measure
from pipeline.evaluation.metrics.forget_fraction import exchange_density, exchange_fraction, forget_fraction
from pipeline.evaluation.metrics.manifold import Manifold
from pipeline.evaluation.metrics.membership import sample_losses
from pipeline.evaluation.metrics.retain_accuracy import retain_accuracy
from pipeline.evaluation.neighbours import nearest_classes
from pipeline.evaluation.sampling import Verdicts, draw_images, judge_samples, plan
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.noising import draw_rows

COUNTS = {0: 3, 1: 5, 3: 2}
DRAWN: dict[str, Any] = {"cfg_scale": 2.0, "steps": 3, "batch": 4}


def verdicts(labels: list[int], called: list[int]) -> Verdicts:
    return Verdicts(labels=tuple(labels), called=tuple(called), moments={})


def test_forgotten_kept_and_exchanged_shares() -> None:
    v = verdicts([1, 1, 1, 1, 5, 5, 0, 0, 2, 2], [1, 7, 7, 0, 5, 3, 0, 0, 2, 1])
    gone = forget_fraction(v, [1, 5])
    assert (gone.value, gone.n) == (2 / 6, 6)
    drawn = exchange_fraction(v, {1: [7], 5: [3]})
    assert drawn is not None and (drawn.value, drawn.n) == (3 / 6, 6)
    assert exchange_fraction(v, {}) is None
    kept = retain_accuracy(v, [1, 5], neighbours=[2])
    assert (kept.mean, kept.min, kept.neighbours, kept.per_class) == (0.75, 0.5, 0.5, {0: 1.0, 2: 0.5})
    assert retain_accuracy(v, [1, 5]).neighbours is None


def test_density_is_the_mean_number_of_balls_over_k_beside_the_exchange_labels_own() -> None:
    v = Verdicts(labels=(1, 1, 1, 5, 7, 7, 0), called=(7,) * 7, moments={}, balls=(2, 0, 0, 4, 3, 9, 1))
    found = exchange_density(v, {1: [7], 5: [3]})
    assert found is not None and found.own is not None
    assert (found.forgotten.value, found.forgotten.n, found.own.value, found.own.n) == (1.5 / 3, 4, 2.0, 2)
    half = 1.959964 * statistics.stdev([2, 0, 0, 4]) / 2
    assert (found.forgotten.low, found.forgotten.high) == pytest.approx(
        (max(0, 1.5 - half) / 3, (1.5 + half) / 3), rel=1e-6
    )
    no_own = exchange_density(v, {5: [3]})  # as where only the nearest of many retained classes are drawn
    assert no_own is not None and no_own.to_dict()["own"] is None
    assert no_own.forgotten.to_dict() == {
        "value": 4 / 3,
        "n": 1,
        "low": None,
        "high": None,
    }, "one image has no interval"
    assert exchange_density(v, {}) is None


def test_the_mean_is_over_classes_not_images() -> None:
    kept = retain_accuracy(verdicts([0] * 8 + [2] * 2, [0] * 8 + [1] * 2), [])
    assert (kept.mean, kept.min) == (0.5, 0.0)


def test_plans_are_keyed_by_seed_purpose_label_and_index() -> None:
    what = plan(COUNTS, seed=1, purpose="a", **DRAWN)
    assert what.labels == (0, 0, 0, 1, 1, 1, 1, 1, 3, 3) and len(set(what.seeds)) == 10
    assert plan(COUNTS, seed=1, purpose="a", **DRAWN) == what
    fewer = plan({1: 2}, seed=1, purpose="a", **DRAWN)
    assert fewer.seeds == what.seeds[3:5]
    for other in (plan(COUNTS, seed=2, purpose="a", **DRAWN), plan(COUNTS, seed=1, purpose="b", **DRAWN)):
        assert not set(other.seeds) & set(what.seeds)


@torch.no_grad()
def around(model: Any, judge: Any, seeds: Sequence[int]) -> Manifold:
    """Balls around what the model draws under label 1 from `seeds`."""
    drawn = model.sample(labels=torch.tensor([1] * len(seeds)), seeds=list(seeds), cfg_scale=2.0, steps=3)
    balls = Manifold.of(judge.features(drawn), k=1)
    return replace(balls, radii=1.01 * balls.radii)  # none of them on another's rim


def judged() -> dict[str, Any]:
    """What a rank finds; plain data."""
    model, judge = tiny_dit(dtype=torch.float32), tiny_judge()
    what = plan(COUNTS, seed=0, purpose="test", **DRAWN)
    found = judge_samples(
        model,
        judge,
        what,
        Collectives(),
        manifolds={1: around(model, judge, what.seeds[6:8]), 3: around(model, judge, what.seeds[6:8])},
    )
    return {
        "called": list(found.called),
        "balls": list(found.balls),
        "moments": {k: (m.n, m.total, m.outer) for k, m in found.moments.items()},
    }


def test_verdicts_are_those_of_one_image_at_a_time() -> None:
    model, judge = tiny_dit(dtype=torch.float32), tiny_judge()
    what, found = plan(COUNTS, seed=0, purpose="test", **DRAWN), judged()
    with torch.no_grad():
        one_by_one = [
            model.sample(labels=torch.tensor([label]), seeds=[seed], cfg_scale=2.0, steps=3)
            for label, seed in zip(what.labels, what.seeds)
        ]
        assert found["called"] == [int(judge.logits(x).argmax()) for x in one_by_one]
        balls = [
            int(around(model, judge, what.seeds[6:8]).balls_around(judge.features(x))) for x in one_by_one
        ]
        assert found["balls"] == [0] * 3 + balls[3:] and min(balls[6:8]) >= 1 and min(balls[3:]) == 0
        for label, (n, total, _) in found["moments"].items():
            features = torch.cat(
                [judge.features(x) for x, asked in zip(one_by_one, what.labels) if asked == label]
            )
            assert n == COUNTS[label]
            torch.testing.assert_close(total, features.double().sum(0), rtol=1e-4, atol=1e-5)
    assert len(set(found["called"])) > 1


def attacked(batch: int = 4) -> list[float]:
    rows = tiny_batch([0, 1, 2], each=3)
    return sample_losses(
        tiny_dit(dtype=torch.float32), rows, draws=3, seed=5, batch=batch, collectives=Collectives()
    )


def test_losses_are_the_models_own_and_those_of_the_sample_alone() -> None:
    found = attacked()
    assert found == pytest.approx(attacked(batch=2), rel=1e-5)
    model, rows = tiny_dit(dtype=torch.float32), tiny_batch([0, 1, 2], each=3)
    for index in (0, 4, 8):
        alone: Batch = rows.take([index])
        total: Any = 0.0
        for k in range(3):
            drawn = draw_rows(model, alone, seed=5, step=k, term="membership", device=torch.device("cpu"))
            total = total + model.losses(model.net, drawn.x0, drawn.y, drawn.noise).item() / 3
        assert found[index] == pytest.approx(total, rel=1e-5)


def judged_and_attacked() -> dict[str, Any]:
    return {"judged": judged(), "attacked": attacked()}


def test_ranks_share_the_work_and_agree() -> None:
    alone, losses = judged(), attacked()
    for found in run_world(2, judged_and_attacked):
        assert found["attacked"] == pytest.approx(losses, rel=1e-5)
        assert found["judged"]["called"] == alone["called"] and found["judged"]["balls"] == alone["balls"]
        for label, (n, total, outer) in found["judged"]["moments"].items():
            assert n == alone["moments"][label][0]
            torch.testing.assert_close(total, alone["moments"][label][1], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(outer, alone["moments"][label][2], rtol=1e-5, atol=1e-6)


def test_grids_show_the_first_images_of_a_measurement() -> None:
    model = tiny_dit(dtype=torch.float32)
    images = draw_images(model, [1, 3], each=2, seed=0, purpose="test", cfg_scale=2.0, steps=3)
    assert images.shape == (4, 1, SIDE, SIDE)
    what = plan({1: 5, 3: 5}, seed=0, purpose="test", **DRAWN)
    picked = [0, 1, 5, 6]
    again = model.sample(
        labels=torch.tensor([what.labels[i] for i in picked]),
        seeds=[what.seeds[i] for i in picked],
        cfg_scale=2.0,
        steps=3,
    )
    torch.testing.assert_close(images, again)


def test_a_measurement_reports_what_it_drew() -> None:
    model, judge = tiny_dit(dtype=torch.float32), tiny_judge()
    model.net.train()
    reference = feature_moments(judge, [tiny_batch([0, 2, 3], each=10).mean])
    subject = Subject(
        judge=judge,
        forgotten=(1,),
        exchange={1: [2]},
        retained=(0, 2, 3),
        neighbours=(2,),
        reference=reference,
    )
    options: dict[str, Any] = {
        "forget_samples": 20,
        "retain_samples": 4,
        "cfg_scale": 2.0,
        "steps": 2,
        "batch": 16,
    }
    first, again, other = (
        measure(model, subject, Collectives(), seed=0, purpose=p, **options) for p in ("a", "a", "b")
    )
    assert model.net.training  # sampling leaves the mode as it was
    assert first.forget.n == 20 and first.exchange is not None and first.exchange.n == 20
    assert (
        sorted(first.retention.per_class) == [0, 2, 3]
        and first.retention.neighbours == first.retention.per_class[2]
    )
    assert first.fid["judge"] > 0
    result = first.to_result()
    assert result["exchange_density"] is None and first.to_record(6)["exchange_density"] is None
    alike = {1: Manifold.of(judge.features(tiny_batch([2], each=10).mean).detach())}
    asked = measure(
        model, replace(subject, manifolds=alike), Collectives(), seed=0, purpose="a", **options
    ).to_result()
    assert asked["exchange_density"]["forgotten"]["n"] == 20 and asked["exchange_density"]["own"]["n"] == 4
    assert asked | {"exchange_density": None} == result
    assert result == again.to_result() and result["fid"] != other.to_result()["fid"]
    assert set(result) >= {"forget_fraction", "retain_accuracy", "fid"} and set(
        result["retain_accuracy"]["per_class"]
    ) == {"0", "2", "3"}
    record = first.to_record(6)
    assert (record["kind"], record["step"], record["forget_fraction/n"]) == ("evaluation", 6, 20)


def test_neighbours_are_the_nearest_by_label_embedding() -> None:
    model = tiny_dit(dtype=torch.float32)
    table = model.net.get_parameter("y_embedder.embedding_table.weight")
    with torch.no_grad():
        table.zero_()
        table[:, 0] = 1.0
        table[0, 1], table[1, 1], table[2, 1], table[3, 1] = 0.0, 0.1, 1.0, 5.0
        table[2] *= 10  # length does not count
    assert nearest_classes(model, [0], [1, 2, 3], 1) == [1]
    assert nearest_classes(model, [0], [1, 2, 3], 2) == [1, 2]
    assert nearest_classes(model, [3], [0, 1, 2], 1) == [2]
    assert nearest_classes(model, [0, 3], [1, 2], 1) == [1, 2]
    assert nearest_classes(model, [0], [1, 2, 3], 99) == [1, 2, 3]
    assert CLASSES == 4
