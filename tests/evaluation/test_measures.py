"""Every measure of the table: the same in one, two and three shards, and what it says is what its formula
says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benches import FEW, rows, tiny_bench, tiny_model
from sklearn.metrics import roc_auc_score

from models.diffusion import Noise
from pipeline.evaluation.attacks.fine_tuning import copied, label_weights, tune
from pipeline.evaluation.computations import WORKS, drawing, plans
from pipeline.evaluation.context import Bench
from pipeline.evaluation.metrics.membership import sample_losses
from pipeline.evaluation.metrics.relearning import renew_labels
from pipeline.evaluation.metrics.retrained_reference import gold_result
from pipeline.evaluation.metrics.table import MEASURES, results, works_of
from pipeline.evaluation.metrics.timestep_loss import edges
from pipeline.evaluation.partials import Shard, added
from pipeline.seeding import seed_of
from pipeline.unlearning.noising import draw_rows
from pipeline.unlearning.parameters import select

NAMES = list(MEASURES)


def measured(bench: Bench, world: int, names: list[str] = NAMES) -> dict[str, Any]:
    found = {
        work: added(WORKS[work](bench, Shard(rank, world)) for rank in range(world))
        for work in works_of(names, bench.scope)
    }
    return results(names, bench.scope, found, bench.sides)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return measured(tiny_bench(), 1)


def close(got: Any, wanted: Any, path: str = "") -> None:
    """Equal in structure, numbers to 1e-10."""
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys(), path
        for key in wanted:
            close(got[key], wanted[key], f"{path}/{key}")
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), path
        for index, item in enumerate(wanted):
            close(got[index], item, f"{path}[{index}]")
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-10, abs=1e-10), path
    else:
        assert got == wanted, path


@pytest.mark.parametrize("world", [2, 3])
def test_shards_add_up_to_the_same_figures(whole: dict[str, Any], world: int) -> None:
    close(measured(tiny_bench(), world), whole)


def test_every_measure_says_something(whole: dict[str, Any]) -> None:
    assert list(whole) == NAMES and all(value is not None for value in whole.values())
    for name, measure in MEASURES.items():
        assert (set(whole[name]) == {"after", "before"}) == (measure.of == "each"), name
    # 21 images in blocks of 8, the last a short one of 5
    assert whole["kid"]["after"]["judge"]["blocks"] == 3
    assert whole["fid"]["after"] != whole["fid"]["before"]


def test_forgotten_at_every_scale_in_the_first_call_and_in_five(whole: dict[str, Any]) -> None:
    found = whole["forget_fraction"]["after"]
    assert found["n"] == 20 and found["cfg_scale"] == 2.0 and list(found["at_cfg_scale"]) == ["1"]
    assert found["top5"]["value"] == 1.0  # of four classes
    assert (
        found["low"] <= found["value"] <= found["high"]
        and found["value"] + found["as_exchange"]["value"] <= 1
    )
    bench = tiny_bench()
    what = plans(bench.scope)["forgotten@1"]
    with torch.no_grad():
        x = bench.model.sample(
            labels=torch.tensor(what.labels), seeds=list(what.seeds), cfg_scale=1.0, steps=2
        )
        share = (bench.judge.logits(x).argmax(1) == 1).float().mean().item()
    assert found["at_cfg_scale"]["1"]["value"] == pytest.approx(share)


def test_density_counts_the_balls_around_real_rows(whole: dict[str, Any]) -> None:
    """Written out: the distance to each of the class's real rows against the one from there to its third
    neighbour."""
    bench, found = tiny_bench(), whole["exchange_density"]
    # 12 rows, fewer than would be picked from
    real = bench.judge.features(rows([2], "train").mean).detach().double().numpy()
    radii = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, 3]

    def mean_of(model: Any, name: str, label: int, first: int) -> tuple[float, int]:
        what = plans(bench.scope)[name]
        asked = [index for index, one in enumerate(what.labels[:first]) if one == label]
        with torch.no_grad():
            x = model.sample(
                labels=torch.tensor([label] * len(asked)),
                seeds=[what.seeds[i] for i in asked],
                cfg_scale=2.0,
                steps=2,
            )
            drawn = bench.judge.features(x).double().numpy()
        inside = np.linalg.norm(drawn[:, None] - real[None], axis=2) <= radii[None]
        return inside.sum(axis=1).mean() / 3, len(asked)

    assert bench.base is not None
    for side, model in (("after", bench.model), ("before", bench.base)):
        assert found[side]["k"] == 3
        for of, name, label in (("forgotten", "forgotten@2", 1), ("own", "retained", 2)):
            value, n = mean_of(model, name, label, 15)
            assert found[side][of]["value"] == pytest.approx(value) and found[side][of]["n"] == n, (side, of)
    assert measured(tiny_bench(exchange={}), 1, ["exchange_density"])["exchange_density"] is None


def test_leakage_is_looked_for_under_every_other_label_and_none(whole: dict[str, Any]) -> None:
    found = whole["leakage"]["after"]
    assert (
        found["other_labels"]["n"] == 21
        and found["null_label"]["n"] == 5
        and set(found["per_label"]) == {"0", "2", "3"}
    )


def test_retained_shares_have_n_and_interval(whole: dict[str, Any]) -> None:
    found = whole["retain_accuracy"]["after"]
    assert found["mean"]["n"] == 21 and all(share["n"] == 7 for share in found["per_class"].values())
    assert found["min"]["value"] == min(share["value"] for share in found["per_class"].values())
    assert (
        found["neighbours"] == found["per_class"]["2"]
        and found["mean"]["low"] <= found["mean"]["value"] <= found["mean"]["high"]
    )


def test_drift_needs_a_before_and_is_nothing_for_the_same_model() -> None:
    alone = measured(tiny_bench(base=False), 1, ["paired_drift", "fid"])
    assert alone["paired_drift"] is None and set(alone["fid"]) == {"after"}
    bench = tiny_bench()
    same = Bench(model=bench.model, base=bench.model, judge=bench.judge, scope=bench.scope, rows=bench.rows)
    assert measured(same, 1, ["paired_drift"])["paired_drift"]["judge"]["mean"] == 0.0


def test_losses_by_timestep_are_the_models_own(whole: dict[str, Any]) -> None:
    bench, found = tiny_bench(), whole["loss_by_timestep"]["after"]
    assert found["bins"] == [[0, 333], [333, 667], [667, 1000]] == [list(edge) for edge in edges(1000, 3)]
    assert {name: value["n"] for name, value in found.items() if name != "bins"} == {
        "forget_train": 11,
        "retain_train": 11,
        "forget_heldout": 5,
        "retain_heldout": 11,
    }
    held = rows([1], "heldout")
    for index, (first, last) in enumerate(edges(1000, 3)):
        drawn = draw_rows(bench.model, held, seed=0, step=index, term="timestep", device=torch.device("cpu"))
        t = first + drawn.noise.t * (last - first) // 1000
        assert int(t.min()) >= first and int(t.max()) < last
        with torch.no_grad():
            losses = (
                bench.model.losses(bench.model.net, drawn.x0, drawn.y, Noise(t=t, eps=drawn.noise.eps))
                .double()
                .numpy()
            )
        group = found["forget_heldout"]
        assert group["mean"][index] == pytest.approx(losses.mean(), rel=1e-5)
        half = 1.959964 * losses.std(ddof=1) / np.sqrt(5)
        assert (group["low"][index], group["high"][index]) == pytest.approx(
            (losses.mean() - half, losses.mean() + half), rel=1e-4
        )


def test_the_attack_tells_forgotten_rows_from_never_seen_ones(whole: dict[str, Any]) -> None:
    bench, found = tiny_bench(), whole["membership_auc"]["after"]
    options: dict[str, Any] = {"draws": 2, "seed": seed_of(0, "measured"), "batch": 8, "collectives": Shard()}
    ours, others = (sample_losses(bench.model, rows([1], split), **options) for split in ("train", "heldout"))
    wanted = roc_auc_score([1] * 12 + [0] * 5, [-loss for loss in ours + others])
    assert found["auc"] == pytest.approx(wanted, abs=1e-9) and (found["n"], found["heldout_n"]) == (12, 5)
    assert 0 <= found["tpr_at_1_fpr"] <= 1


def test_named_samples_are_attacked_and_nothing_else_is_asked_of_them() -> None:
    names = tuple(rows([1], "train").sample_id[:4])
    bench = tiny_bench(
        forgotten=(), exchange={}, retained=(0, 1, 2, 3), sample_ids=names, sample_classes=(1,)
    )
    found = measured(bench, 2)
    assert found["membership_auc"]["after"]["n"] == 4 and found["membership_auc"]["after"]["heldout_n"] == 5
    assert found["forget_fraction"] is None and found["leakage"] is None and found["relearn_steps"] is None
    assert set(found["retain_accuracy"]["after"]["per_class"]) == {"0", "1", "2", "3"}


def test_a_model_without_labels_is_not_asked_for_any() -> None:
    found = measured(
        tiny_bench(conditional=False),
        1,
        ["forget_fraction", "leakage", "retain_accuracy", "paired_drift", "relearn_steps", "fid"],
    )
    assert [name for name, value in found.items() if value is None] == [
        "leakage",
        "retain_accuracy",
        "paired_drift",
        "relearn_steps",
    ]


def test_relearning_stops_where_half_is_back(whole: dict[str, Any]) -> None:
    found = whole["relearn_steps"]
    assert found["budget"] == 2 and found["threshold"] == whole["forget_fraction"]["before"]["value"] / 2
    for variant in ("forgotten_label", "never_trained_label"):
        curve = found[variant]["curve"]
        reached = [line["step"] for line in curve if line["value"] >= found["threshold"]]
        assert found[variant]["steps"] == (reached[0] if reached else None) and all(
            line["n"] == 20 for line in curve
        )


def test_a_fresh_label_changes_only_the_forgotten_ones() -> None:
    bench = tiny_bench()
    model = copied(bench.model)
    renew_labels(model, bench.scope)
    moved = (label_weights(model) != label_weights(bench.model)).any(dim=1)
    assert moved.tolist() == [False, True, False, False, False]


def test_tuning_moves_a_copy_and_lowers_its_loss() -> None:
    bench = tiny_bench()
    model, some = copied(bench.model), rows([1], "train")
    seen: list[int] = []

    def loss(of: Any) -> float:
        return float(np.mean(sample_losses(of, some, draws=4, seed=1, batch=8, collectives=Shard())))

    steps = tune(
        model,
        select(model, "all"),
        some,
        steps=30,
        lr=3e-3,
        batch=8,
        seed=0,
        purpose="p",
        stop=lambda step: bool(seen.append(step)),
    )
    assert (
        steps == 30
        and seen == list(range(1, 31))
        and loss(model) < loss(bench.model)
        and not model.net.training
    )
    assert loss(bench.model) == loss(tiny_model(0))
    early = copied(bench.model)
    assert (
        tune(
            early,
            select(early, "all"),
            some,
            steps=30,
            lr=3e-3,
            batch=8,
            seed=0,
            purpose="p",
            stop=lambda step: step == 4,
        )
        == 4
    )


@pytest.mark.parametrize("world", [1, 3])
def test_the_gold_reference_is_compared_on_the_same_seeds(world: int) -> None:
    bench = replace(tiny_bench(), gold=tiny_model(1))  # the gold is the model before, to the bit
    found = gold_result(bench.scope, added(drawing(bench, Shard(rank, world)) for rank in range(world)))
    before, after = found["before"], found["after"]
    assert before["agreement"]["value"] == 1.0 and before["paired_drift"]["judge"]["mean"] == 0.0
    assert before["frechet"]["judge"] == pytest.approx(0, abs=1e-6)
    assert (
        after["agreement"]["value"] < 1
        and after["paired_drift"]["judge"]["mean"] > 0
        and after["frechet"]["judge"] > 0
    )
    assert after["agreement"]["n"] == 21 and set(after["agreement"]["per_class"]) == {"0", "2", "3"}
    drawn = measured(bench, 1, ["forget_fraction", "retain_accuracy"])
    assert found["forget_fraction"]["value"] == drawn["forget_fraction"]["before"]["value"]
    assert found["retain_accuracy"]["mean"] == drawn["retain_accuracy"]["before"]["mean"]
    # samples: no label is forgotten
    named = replace(bench, scope=replace(bench.scope, forgotten=(), exchange={}, retained=(0, 1, 2, 3)))
    about = gold_result(named.scope, drawing(named, Shard()))
    assert (
        about["forget_fraction"] is about["after"]["forget_fraction"] is None
        and about["before"]["agreement"]["value"] == 1.0
    )


def test_the_gold_is_measured_like_the_others(whole: dict[str, Any]) -> None:
    """As the model before, to the bit, it has the figures of the model before; the others' are what they are
    without it."""
    found = measured(replace(tiny_bench(), gold=tiny_model(1)), 2)
    for name, measure in MEASURES.items():
        assert measure.of != "each" or found[name].pop("gold") == found[name]["before"], name
    close(found, whole)


def test_what_is_drawn_mixes_the_labels_and_is_paired_across_sides() -> None:
    what = plans(tiny_bench().scope)
    assert set(what) == {"retained", "forgotten@2", "forgotten@1", "null"}
    assert (
        len(set(what["retained"].labels[: FEW.block])) == 3
        and sorted(what["retained"].labels) == [0] * 7 + [2] * 7 + [3] * 7
    )
    assert what["forgotten@1"].seeds == what["forgotten@2"].seeds and len(set(what["retained"].seeds)) == 21
