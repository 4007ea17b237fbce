"""Images sampled and judged: by label and seed alone, over any number of ranks; what is counted as forgotten
and as kept."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from contexts import tiny_context
from distributed import run_world
from tiny import CLASSES, SIDE, tiny_batch, tiny_dit, tiny_judge
from torch import Tensor

from pipeline.config.measuring import Measuring
from pipeline.data.batch import Batch
from pipeline.evaluation.context import AFTER, EvalContext
from pipeline.evaluation.feature_statistics import Moments
from pipeline.evaluation.manifold import Manifold
from pipeline.evaluation.metrics.membership import row_losses
from pipeline.evaluation.metrics.retain_accuracy import accuracy
from pipeline.evaluation.metrics.table import computations_of, evaluate, results
from pipeline.evaluation.neighbours import nearest_classes
from pipeline.evaluation.partials import all_reduce
from pipeline.evaluation.sampling import plan, plans, predicted_classes
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.noising import noised_rows

COUNTS = {0: 3, 1: 5, 3: 2}
SAMPLED: dict[str, Any] = {"cfg_scale": 2.0, "steps": 3, "batch": 4}
CHECK = ("forget_fraction", "exchange_fraction", "exchange_density", "retain_accuracy", "fid")


def of_predictions(
    under_forgotten: list[tuple[int, int]], under_retained: list[tuple[int, int]], **spec: Any
) -> dict[str, Any]:
    """The results of pairs of label and prediction."""
    context = tiny_context(**spec)
    partials = {
        f"{AFTER}/{name}/predictions": torch.tensor(pairs)
        for name, pairs in (("forgotten@2", under_forgotten), ("retained", under_retained))
    }
    few = replace(context.spec, joint=True, top=1)
    names = ("forget_fraction", "exchange_fraction", "retain_accuracy")
    return results(names, few, partials, [AFTER])[AFTER]


def test_forgotten_kept_and_exchanged_shares() -> None:
    result = of_predictions(
        [(1, 1), (1, 7), (1, 7), (1, 0), (5, 5), (5, 3)],
        [(0, 0), (0, 0), (2, 2), (2, 1)],
        forgotten=(1, 5),
        exchange={1: (7,), 5: (3,)},
        retained=(0, 2),
    )
    assert (result["forget_fraction"]["value"], result["forget_fraction"]["n"]) == (2 / 6, 6)
    assert (result["exchange_fraction"]["value"], result["exchange_fraction"]["n"]) == (3 / 6, 6)
    kept = result["retain_accuracy"]
    assert (kept["mean"], kept["min"], kept["neighbours"]) == (0.75, 0.5, 0.5)
    assert kept["per_class"] == {"0": 1.0, "2": 0.5}
    assert kept["intervals"]["min"]["class"] == 2 and kept["intervals"]["mean"]["n"] == 4
    alone = of_predictions([(1, 1)], [(0, 0)], exchange={}, neighbours=())
    assert alone["exchange_fraction"] is None and alone["retain_accuracy"]["neighbours"] is None


def test_of_a_model_without_labels_every_image_of_a_forgotten_class_counts() -> None:
    pairs = [(0, 1), (0, 3), (0, 0), (0, 2)]
    result = of_predictions(pairs, pairs, forgotten=(1, 3), conditional=False)
    assert (result["forget_fraction"]["value"], result["forget_fraction"]["n"]) == (0.5, 4)
    assert result["retain_accuracy"]["mean"] is None and result["exchange_fraction"] is None


def test_density_is_the_mean_number_of_balls_over_k_beside_the_exchange_labels_own() -> None:
    def of(forgotten: list[int], own: list[int]) -> dict[str, Any]:
        def balls(counts: list[int]) -> Tensor:  # and a row that has nothing to be held against
            return torch.tensor([[1, count] for count in counts] + [[0, 7]])

        partials = {f"{AFTER}/forgotten@2/balls": balls(forgotten), f"{AFTER}/retained/balls": balls(own)}
        return results(["exchange_density"], tiny_context().spec, partials, [AFTER])[AFTER][
            "exchange_density"
        ]

    result = of([2, 0, 0, 4], [3, 9])
    assert (result["forgotten"]["value"], result["forgotten"]["n"]) == (1.5 / 3, 4)
    assert (result["own"]["value"], result["own"]["n"]) == (2.0, 2)
    half = 3.182446 * statistics.stdev([2, 0, 0, 4]) / 2
    assert (result["forgotten"]["low"], result["forgotten"]["high"]) == pytest.approx(
        (max(0, 1.5 - half) / 3, (1.5 + half) / 3), rel=1e-6
    )
    # as where only the nearest of many retained classes are sampled; one image has no interval
    assert of([4], []) == {"forgotten": {"value": 4 / 3, "n": 1, "low": None, "high": None}, "own": None}
    assert of([], [1]) is None


def test_the_mean_is_over_classes_not_images() -> None:
    kept = accuracy([0] * 8 + [2] * 2, [0] * 8 + [1] * 2)
    assert (kept["mean"], kept["min"]) == (0.5, 0.0) and kept["intervals"]["mean"]["value"] == 0.8


def test_plans_are_keyed_by_seed_purpose_label_and_index() -> None:
    first = plan(COUNTS, seed=1, purpose="a", **SAMPLED)
    assert first.labels == (0, 0, 0, 1, 1, 1, 1, 1, 3, 3) and len(set(first.seeds)) == 10
    assert plan(COUNTS, seed=1, purpose="a", **SAMPLED) == first
    fewer = plan({1: 2}, seed=1, purpose="a", **SAMPLED)
    assert fewer.seeds == first.seeds[3:5]
    for other in (plan(COUNTS, seed=2, purpose="a", **SAMPLED), plan(COUNTS, seed=1, purpose="b", **SAMPLED)):
        assert not set(other.seeds) & set(first.seeds)


@torch.no_grad()
def around(context: EvalContext, seeds: Sequence[int]) -> Manifold:
    """Balls around what the model samples under label 1 from `seeds`."""
    x = context.model.sample(labels=torch.tensor([1] * len(seeds)), seeds=list(seeds), cfg_scale=2.0, steps=2)
    balls = Manifold.of(context.judge.features(x), k=1)
    return replace(balls, radii=1.01 * balls.radii)  # none of them on another's rim


def check_context(**changes: Any) -> EvalContext:
    """As a run's check has it: 20 images under label 1 and 4 under each other one in one plan of 7 blocks."""
    context = tiny_context(base=False)
    settings = Measuring().model_copy(
        update={
            **{"samples": 20, "retain_samples": 4, "null_samples": 0},
            **{"sampler_steps": 2, "block": 16, "cfg_scale": 2.0},
        }
    )
    values = {"settings": settings, "joint": True, "cuts": 8, "top": 1, "purpose": "test"} | changes
    real = {"judge/real/moments/all": Moments.of(context.judge.features(tiny_batch([0, 2, 3], each=10).mean))}
    return replace(
        context,
        spec=replace(context.spec, **values),
        real={name: moments.packed() for name, moments in real.items()},
        manifolds={},
    )


def judged() -> dict[str, Any]:
    """What a rank finds: partials and results, plain data."""
    context = check_context()
    (joint,) = plans(context.spec)
    context = replace(context, manifolds={1: around(context, joint.seeds[6:8])})
    (compute,) = computations_of(CHECK, context.spec).values()
    ranks = Collectives()
    return {
        "partials": all_reduce(compute(context, ranks), ranks, context.device),
        "results": evaluate(CHECK, context, ranks)[AFTER],
    }


def test_results_are_those_of_one_image_at_a_time() -> None:
    context, found = check_context(), judged()
    (joint,) = plans(context.spec)
    assert joint.batch == 4 and [len(group) for group in joint.groups.values()] == [12, 20]
    with torch.no_grad():
        images = [
            context.model.sample(labels=torch.tensor([label]), seeds=[seed], cfg_scale=2.0, steps=2)
            for label, seed in zip(joint.labels, joint.seeds)
        ]
        predicted = [int(context.judge.logits(x).argmax()) for x in images]
        features = [context.judge.features(x) for x in images]
    groups = {
        "retained": [index for index, label in enumerate(joint.labels) if label != 1],
        "forgotten@2": [index for index, label in enumerate(joint.labels) if label == 1],
    }
    for name, positions in groups.items():
        table = found["partials"][f"{AFTER}/{name}/predictions"]
        assert table.tolist() == [[joint.labels[index], predicted[index]] for index in positions]
    balls = around(context, joint.seeds[6:8])
    for name, labels in (("forgotten@2", {1}), ("retained", {2})):  # 2 is the exchange class
        wanted = [
            [1, int(balls.balls_around(features[index]))] if joint.labels[index] in labels else [0, 0]
            for index in groups[name]
        ]
        assert found["partials"][f"{AFTER}/{name}/balls"].tolist() == wanted
    for label in (0, 2, 3):
        moments = Moments.unpacked(found["partials"][f"judge/{AFTER}/moments/{label}"])
        own = torch.cat([features[index] for index, of in enumerate(joint.labels) if of == label])
        assert moments.n == 4
        torch.testing.assert_close(moments.total, own.double().sum(0), rtol=1e-4, atol=1e-5)
    right = sum(predicted[index] == joint.labels[index] for index in groups["retained"])
    assert found["results"]["retain_accuracy"]["intervals"]["mean"]["value"] == right / 12
    hits = sum(predicted[index] == 1 for index in groups["forgotten@2"])
    assert found["results"]["forget_fraction"]["value"] == hits / 20
    assert len(set(predicted)) > 1


def row_losses_of(batch: int = 4) -> list[float]:
    rows = tiny_batch([0, 1, 2], each=3)
    ranks = Collectives()
    losses = row_losses(tiny_dit(dtype=torch.float32), rows, noises=3, seed=5, batch=batch, ranks=ranks)
    return [float(loss) for loss in ranks.sum(losses).tolist()]


def test_losses_are_the_models_own_and_those_of_the_sample_alone() -> None:
    losses = row_losses_of()
    assert losses == pytest.approx(row_losses_of(batch=2), rel=1e-5)
    model, rows = tiny_dit(dtype=torch.float32), tiny_batch([0, 1, 2], each=3)
    for index in (0, 4, 8):
        alone: Batch = rows.take([index])
        total: Any = 0.0
        for k in range(3):
            noised = noised_rows(model, alone, seed=5, step=k, term="membership", device=torch.device("cpu"))
            total = total + model.losses(model.net, noised.x0, noised.y, noised.noise).item() / 3
        assert losses[index] == pytest.approx(total, rel=1e-5)


def sampled_plan() -> list[int]:
    return predicted_classes(
        tiny_dit(dtype=torch.float32),
        tiny_judge(),
        plan(COUNTS, seed=0, purpose="test", **SAMPLED),
        Collectives(),
    )


def all_of_it() -> dict[str, Any]:
    return {"judged": judged(), "losses": row_losses_of(), "predicted": sampled_plan()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_work_and_agree(world_size: int) -> None:
    alone, losses, predicted = judged(), row_losses_of(), sampled_plan()
    for found in run_world(world_size, all_of_it):
        assert found["losses"] == pytest.approx(losses, rel=1e-5) and found["predicted"] == predicted
        partials = found["judged"]["partials"]
        assert partials.keys() == alone["partials"].keys()
        for name, value in alone["partials"].items():
            if value.dtype == torch.int64:
                assert torch.equal(partials[name], value), name
            torch.testing.assert_close(partials[name], value, rtol=1e-5, atol=1e-6)
        for name in CHECK[:-1]:
            assert found["judged"]["results"][name] == alone["results"][name]
        assert found["judged"]["results"]["fid"]["judge"] == pytest.approx(alone["results"]["fid"]["judge"])


def test_a_plan_of_fewer_images_is_the_beginning_of_a_longer_one() -> None:
    """So that the grids of a report show the first images of what was evaluated."""
    model = tiny_dit(dtype=torch.float32)
    few, many = (plan({1: n, 3: n}, seed=0, purpose="test", **SAMPLED) for n in (2, 5))
    images, again = (
        model.sample(labels=torch.tensor(one.labels), seeds=list(one.seeds), cfg_scale=2.0, steps=3)
        for one in (few, many)
    )
    assert images.shape == (4, 1, SIDE, SIDE)
    torch.testing.assert_close(images, again[[0, 1, 5, 6]])


def test_another_purpose_is_other_noise_and_the_same_one_the_same() -> None:
    first, again, other = (
        evaluate(CHECK, check_context(purpose=purpose), Collectives())[AFTER] for purpose in ("a", "a", "b")
    )
    assert first == again and first["fid"] != other["fid"] and first["fid"]["judge"] > 0
    assert first["forget_fraction"]["n"] == 20 and first["exchange_fraction"]["n"] == 20
    assert list(first["retain_accuracy"]["per_class"]) == ["0", "2", "3"]
    assert first["retain_accuracy"]["neighbours"] == first["retain_accuracy"]["per_class"]["2"]
    assert first["exchange_density"] is None, "no real rows to hold it against"


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
