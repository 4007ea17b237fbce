"""Every metric of the table: the same in one, two and three shards, and what it says is what its formula
says."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contexts import FEW, rows, tiny_context, tiny_model
from sklearn.metrics import roc_auc_score

from models.diffusion import Noise
from pipeline.evaluation.attacks.tuning import copied, label_weights, renew_labels, tune
from pipeline.evaluation.context import AFTER, BEFORE, REFERENCE, EvalContext
from pipeline.evaluation.metrics.membership import row_losses
from pipeline.evaluation.metrics.table import METRICS, computations_of, evaluate, results
from pipeline.evaluation.metrics.timestep_loss import edges
from pipeline.evaluation.partials import Shard, merge
from pipeline.evaluation.sampling import Plan, plans
from pipeline.seeding import seed_of
from pipeline.unlearning.noising import noised_rows
from pipeline.unlearning.parameters import select

NAMES = list(METRICS)
OF_LABELS = [
    name
    for name in NAMES
    if name not in ("class_shares", "retrained_reference", "earlier_fraction", "replication")
]


def computed(
    context: EvalContext, world_size: int, names: Collection[str] = NAMES
) -> dict[str, dict[str, Any]]:
    """{side: {metric: result}} by shards that are merged, as tasks do it."""
    parts = [
        compute(context, Shard(rank, world_size))
        for compute in computations_of(names, context.spec).values()
        for rank in range(world_size)
    ]
    return results(names, context.spec, merge(parts), list(context.sides))


def group(context: EvalContext, name: str) -> Plan:
    (one,) = [one for one in plans(context.spec) if name in one.groups]
    return one


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    return computed(tiny_context(), 1)


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


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_add_up_to_the_same_figures(whole: dict[str, dict[str, Any]], world_size: int) -> None:
    close(computed(tiny_context(), world_size), whole)


def test_one_process_gives_the_figures_of_tasks(whole: dict[str, dict[str, Any]]) -> None:
    close(evaluate(NAMES, tiny_context(), Shard()), whole)


def test_every_metric_says_something_of_the_sides_it_is_taken_of(whole: dict[str, dict[str, Any]]) -> None:
    assert list(whole) == [AFTER, BEFORE]
    for side, results_ in whole.items():
        assert list(results_) == [name for name in NAMES if side in METRICS[name].sides]
        for name in (name for name in results_ if name in OF_LABELS):
            assert results_[name] is not None, name
    assert whole[AFTER]["class_shares"] is whole[AFTER]["retrained_reference"] is None
    # 21 images in blocks of 8, the last a short one of 5
    assert whole[AFTER]["kid"]["judge"]["blocks"] == 3
    assert whole[AFTER]["fid"] != whole[BEFORE]["fid"]


def test_every_figure_has_a_title_that_a_report_shows(whole: dict[str, dict[str, Any]]) -> None:
    for name in OF_LABELS:
        metric, result = METRICS[name], whole[AFTER][name]
        assert metric.title and metric.meaning.endswith(".")
        figures = metric.rows(result)
        assert figures and all("_" not in title for title in figures), (name, figures)


def test_forgotten_at_every_scale_in_the_first_call_and_in_five(whole: dict[str, dict[str, Any]]) -> None:
    found, instead = whole[AFTER]["forget_fraction"], whole[AFTER]["exchange_fraction"]
    assert found["n"] == 20 and list(found["at_cfg_scale"]) == list(instead["at_cfg_scale"]) == ["1"]
    assert found["top5"]["value"] == 1.0  # of four classes
    assert found["low"] <= found["value"] <= found["high"] and found["value"] + instead["value"] <= 1
    context = tiny_context()
    one = group(context, "forgotten@1")
    with torch.no_grad():
        x = context.model.sample(
            labels=torch.tensor(one.labels), seeds=list(one.seeds), cfg_scale=1.0, steps=2
        )
        predicted = context.judge.logits(x).argmax(1)
    assert found["at_cfg_scale"]["1"]["value"] == pytest.approx((predicted == 1).float().mean().item())
    assert instead["at_cfg_scale"]["1"]["value"] == pytest.approx((predicted == 2).float().mean().item())


def test_every_scale_has_its_own_predictions() -> None:
    partials = {
        f"{AFTER}/forgotten@{scale}/predictions": torch.tensor([[1, *row] for row in rows_])
        for scale, rows_ in (("2", [(1, 2), (2, 1)]), ("1", [(2, 1), (2, 3)]))
    }
    names = ["forget_fraction", "exchange_fraction"]
    found = results(names, tiny_context().spec, partials, [AFTER])[AFTER]
    gone, instead = found["forget_fraction"], found["exchange_fraction"]
    assert (gone["value"], gone["top5"]["value"]) == (0.5, 1.0) and instead["value"] == 0.5
    assert (gone["at_cfg_scale"]["1"]["value"], gone["at_cfg_scale"]["1"]["top5"]["value"]) == (0.0, 0.5)
    assert instead["at_cfg_scale"]["1"]["value"] == 1.0


def test_density_counts_the_balls_around_real_rows(whole: dict[str, dict[str, Any]]) -> None:
    """Written out: the distance to each of the class's real rows against the one from there to its third
    neighbour."""
    context = tiny_context()
    # 12 rows, fewer than would be picked from
    real = context.judge.features(rows([2], "train").mean).detach().double().numpy()
    radii = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, 3]

    def mean_of(model: Any, name: str, label: int, first: int) -> tuple[float, int]:
        what = group(context, name)
        index = [index for index, one in enumerate(what.labels[:first]) if one == label]
        with torch.no_grad():
            x = model.sample(
                labels=torch.tensor([label] * len(index)),
                seeds=[what.seeds[i] for i in index],
                cfg_scale=2.0,
                steps=2,
            )
            drawn = context.judge.features(x).double().numpy()
        inside = np.linalg.norm(drawn[:, None] - real[None], axis=2) <= radii[None]
        return inside.sum(axis=1).mean() / 3, len(index)

    assert context.base is not None
    for side, model in ((AFTER, context.model), (BEFORE, context.base)):
        for of, name, label in (("forgotten", "forgotten@2", 1), ("own", "retained", 2)):
            value, n = mean_of(model, name, label, 15)
            found = whole[side]["exchange_density"][of]
            assert found["value"] == pytest.approx(value) and found["n"] == n, (side, of)
    nothing = computed(tiny_context(exchange={}), 1, ["exchange_density"])
    assert nothing == {AFTER: {"exchange_density": None}, BEFORE: {"exchange_density": None}}


def test_leakage_is_looked_for_under_every_other_label_and_none(whole: dict[str, dict[str, Any]]) -> None:
    found = whole[AFTER]["leakage"]
    assert (
        found["other_labels"]["n"] == 21
        and found["null_label"]["n"] == 5
        and set(found["per_label"]) == {"0", "2", "3"}
    )


def test_leakage_is_what_the_judge_predicts_under_the_other_labels(whole: dict[str, dict[str, Any]]) -> None:
    context = tiny_context()
    for name, of in (("retained", "other_labels"), ("null", "null_label")):
        one = group(context, name)
        with torch.no_grad():
            x = context.model.sample(
                labels=torch.tensor(one.labels), seeds=list(one.seeds), cfg_scale=one.cfg_scale, steps=2
            )
            hits = (context.judge.logits(x).argmax(1) == 1).float().mean().item()
        assert whole[AFTER]["leakage"][of]["value"] == pytest.approx(hits)


def test_retained_shares_have_n_and_interval(whole: dict[str, dict[str, Any]]) -> None:
    found = whole[AFTER]["retain_accuracy"]
    intervals = found["intervals"]
    assert intervals["mean"]["n"] == 21 and all(share["n"] == 7 for share in intervals["per_class"].values())
    assert found["min"] == intervals["min"]["value"] == min(found["per_class"].values())
    assert found["neighbours"] == found["per_class"]["2"] == intervals["neighbours"]["value"]
    assert intervals["mean"]["low"] <= intervals["mean"]["value"] <= intervals["mean"]["high"]
    assert found["mean"] == pytest.approx(intervals["mean"]["value"])


def test_drift_needs_a_before_and_is_nothing_for_the_same_model() -> None:
    alone = computed(tiny_context(base=False), 1, ["paired_drift", "fid"])
    assert set(alone) == {AFTER} and alone[AFTER]["paired_drift"] is None and alone[AFTER]["fid"]
    same = replace(tiny_context(), base=tiny_model(0))
    assert computed(same, 1, ["paired_drift"])[AFTER]["paired_drift"]["judge"]["mean"] == 0.0


def test_shares_of_a_model_without_labels_are_of_all_its_images() -> None:
    context = tiny_context(conditional=False, forgotten=(1, 3), retained=(0, 2))
    found = computed(context, 2, ["class_shares", "forget_fraction"])[AFTER]
    shares = found["class_shares"]
    assert shares["n"] == 14 and sum(shares["per_class"].values()) == pytest.approx(1)
    one = group(context, "forgotten@2")
    with torch.no_grad():
        x = context.model.sample(
            labels=torch.tensor(one.labels), seeds=list(one.seeds), cfg_scale=2.0, steps=2
        )
        gone = torch.isin(context.judge.logits(x).argmax(1), torch.tensor([1, 3])).float().mean().item()
    assert found["forget_fraction"]["value"] == pytest.approx(gone)


def test_losses_by_timestep_are_the_models_own(whole: dict[str, dict[str, Any]]) -> None:
    context, found = tiny_context(), whole[AFTER]["loss_by_timestep"]
    assert found["bins"] == [[0, 333], [333, 667], [667, 1000]] == [list(edge) for edge in edges(1000, 3)]
    assert {name: value["n"] for name, value in found.items() if name != "bins"} == {
        "forget_train": 11,
        "retain_train": 11,
        "forget_heldout": 5,
        "retain_heldout": 11,
    }
    held = rows([1], "heldout")
    for index, (first, last) in enumerate(edges(1000, 3)):
        drawn = noised_rows(
            context.model, held, seed=0, step=index, term="timestep", device=torch.device("cpu")
        )
        t = first + drawn.noise.t * (last - first) // 1000
        assert int(t.min()) >= first and int(t.max()) < last
        with torch.no_grad():
            losses = (
                context.model.losses(context.model.net, drawn.x0, drawn.y, Noise(t=t, eps=drawn.noise.eps))
                .double()
                .numpy()
            )
        line = found["forget_heldout"]
        assert line["mean"][index] == pytest.approx(losses.mean(), rel=1e-5)
        half = 2.776445 * losses.std(ddof=1) / np.sqrt(5)
        assert (line["low"][index], line["high"][index]) == pytest.approx(
            (losses.mean() - half, losses.mean() + half), rel=1e-4
        )


def test_the_attack_tells_forgotten_rows_from_never_seen_ones(whole: dict[str, dict[str, Any]]) -> None:
    context, found = tiny_context(), whole[AFTER]["membership"]
    options: dict[str, Any] = {"noises": 2, "seed": seed_of(0, "measured"), "batch": 8, "ranks": Shard()}
    ours, others = (
        row_losses(context.model, rows([1], split), **options).tolist() for split in ("train", "heldout")
    )
    wanted = roc_auc_score([1] * 12 + [0] * 5, [-loss for loss in ours + others])
    assert found["auc"] == pytest.approx(wanted, abs=1e-9) and (found["n"], found["heldout_n"]) == (12, 5)
    assert 0 <= found["tpr_at_1_fpr"] <= 1


def test_named_samples_are_attacked_and_nothing_else_is_asked_of_them() -> None:
    names = tuple(rows([1], "train").sample_id[:4])
    context = tiny_context(
        forgotten=(), exchange={}, retained=(0, 1, 2, 3), sample_ids=names, sample_classes=(1,)
    )
    found = computed(context, 2)[AFTER]
    assert found["membership"]["n"] == 4 and found["membership"]["heldout_n"] == 5
    assert found["forget_fraction"] is found["leakage"] is found["relearn_steps"] is None
    assert set(found["retain_accuracy"]["per_class"]) == {"0", "1", "2", "3"}


def test_a_model_without_labels_is_not_asked_for_any() -> None:
    names = ["forget_fraction", "leakage", "retain_accuracy", "paired_drift", "relearn_steps", "fid"]
    found = computed(tiny_context(conditional=False), 1, names)[AFTER]
    nothing = [name for name, value in found.items() if value is None]
    assert (
        nothing == ["leakage", "paired_drift", "relearn_steps"] and found["retain_accuracy"]["mean"] is None
    )


def test_relearning_stops_where_half_is_back(whole: dict[str, dict[str, Any]]) -> None:
    found = whole[AFTER]["relearn_steps"]
    assert found["budget"] == 2 and found["threshold"] == whole[BEFORE]["forget_fraction"]["value"] / 2
    for variant in ("forgotten_label", "never_trained_label"):
        curve = found[variant]["curve"]
        reached = [line["step"] for line in curve if line["value"] >= found["threshold"]]
        assert found[variant]["steps"] == (reached[0] if reached else None) and all(
            line["n"] == 20 for line in curve
        )
    context = tiny_context()
    seeds = [seed_of(0, "relearn at 0", 1, k) for k in range(20)]
    with torch.no_grad():
        x = context.model.sample(labels=torch.tensor([1] * 20), seeds=seeds, cfg_scale=2.0, steps=2)
        share = (context.judge.logits(x).argmax(1) == 1).float().mean().item()
    assert found["forgotten_label"]["curve"][0]["value"] == pytest.approx(share)


def test_a_fresh_label_changes_only_the_forgotten_ones() -> None:
    context = tiny_context()
    model = copied(context.model)
    renew_labels(model, context.spec)
    moved = (label_weights(model) != label_weights(context.model)).any(dim=1)
    assert moved.tolist() == [False, True, False, False, False]


def test_tuning_moves_a_copy_and_lowers_its_loss() -> None:
    context = tiny_context()
    model, some = copied(context.model), rows([1], "train")
    seen: list[int] = []

    def loss(of: Any) -> float:
        return row_losses(of, some, noises=4, seed=1, batch=8, ranks=Shard()).mean().item()

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
        and loss(model) < loss(context.model)
        and not model.net.training
    )
    assert loss(context.model) == loss(tiny_model(0))
    early = copied(context.model)
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


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_retrained_reference_is_compared_on_the_same_seeds(world_size: int) -> None:
    context = replace(
        tiny_context(), reference=tiny_model(1)
    )  # the reference is the model before, to the bit
    found = computed(context, world_size, ["retrained_reference"])
    before, after = (found[side]["retrained_reference"] for side in (BEFORE, AFTER))
    assert before["agreement"]["value"] == 1.0 and before["paired_drift"]["judge"]["mean"] == 0.0
    assert before["fid"]["judge"] == pytest.approx(0, abs=1e-6)
    assert after["agreement"]["value"] < 1
    assert after["paired_drift"]["judge"]["mean"] > 0 and after["fid"]["judge"] > 0
    assert after["agreement"]["n"] == 21 and set(after["agreement"]["per_class"]) == {"0", "2", "3"}
    assert found[REFERENCE] == {}


def test_the_reference_is_measured_like_the_others(whole: dict[str, dict[str, Any]]) -> None:
    """As the model before, to the bit, it has the figures of the model before; the others' are what they are
    without it."""
    found = computed(replace(tiny_context(), reference=tiny_model(1)), 2, OF_LABELS)
    close(found.pop(REFERENCE), found[BEFORE])
    close(found, {side: {name: one[name] for name in found[side]} for side, one in whole.items()})


def test_what_is_sampled_mixes_the_labels_and_is_paired_across_sides() -> None:
    context = tiny_context()
    groups = {name: one for one in plans(context.spec) for name in one.groups}
    assert set(groups) == {"retained", "forgotten@2", "forgotten@1", "null"}
    retained = groups["retained"]
    assert len(set(retained.labels[: FEW.block])) == 3
    assert sorted(retained.labels) == [0] * 7 + [2] * 7 + [3] * 7 and len(set(retained.seeds)) == 21
    assert groups["forgotten@1"].seeds == groups["forgotten@2"].seeds
