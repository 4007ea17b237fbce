"""The memory plan against the CPU allocator's own records, and the choices it makes."""

from typing import Any

import pytest
import torch

from models.diffusion import Noise
from models.generative import build, dit_description
from pipeline.benchmarks.measure import peak_bytes
from pipeline.config import UnlearnConfig, parse
from pipeline.runs.memory_plan import GIB, MODES, MemoryPlan
from pipeline.unlearning.adversary import Adversary
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import Rows, StepRows
from pipeline.unlearning.parameters import select
from pipeline.unlearning.redirection import RedirectionRows, redirection_terms
from pipeline.unlearning.teacher import Teacher

ROWS = 8


def config(**more: Any) -> UnlearnConfig:
    values: dict[str, Any] = {
        "model": {"size": "DiT-small"},
        "request": {"classes": [1], "exchange": {1: 9}},
        "trainable": "labels_and_adaln:2",
        "optim": {"batch_size": ROWS},
        "train": {"workers": 1},
    }
    return parse(UnlearnConfig, values | more)


def description(
    depth: int = 4, size: str = "DiT-small", width: int = 96, learn_sigma: bool = False
) -> dict[str, Any]:
    described = dit_description(
        size, shape=(3, 16, 16), num_classes=10, class_names=["x"] * 10, learn_sigma=learn_sigma
    )
    described["architecture"] |= {"depth": depth, "width": width, "heads": 4}
    return described


def measured(settings: UnlearnConfig, described: dict[str, Any], hvp: str) -> int:
    """Peak bytes of a real step on the CPU above what lay there before, by the allocator's records."""
    model = build(described)
    named = select(model, settings.trainable)
    teacher = Teacher(model, named) if settings.method.targets == "teacher" else None
    g = torch.Generator().manual_seed(0)

    def rows() -> Rows:
        x0, y = torch.rand(ROWS, *model.shape, generator=g), torch.ones(ROWS, dtype=torch.long)
        noise = Noise(
            t=torch.randint(1000, (ROWS,), generator=g), eps=torch.randn(ROWS, *model.shape, generator=g)
        )
        return Rows(x0=x0, y=y, target_y=y, noise=noise)

    data = StepRows(retain=rows(), forget=rows(), exchange=rows())

    def run() -> None:
        terms = build_terms(
            model, data, Weights(targets=settings.method.targets), teacher=teacher, joint=hvp != "recompute"
        )
        local = LocalGradients(params=list(named.values()), terms=terms, hvp=hvp)
        gradients = Gradients(index=1, local=local, collectives=Collectives())
        name = settings.method.name
        METHODS[name].gradient(gradients, method_settings(name, {}))

    return peak_bytes(run)


@pytest.mark.parametrize("hvp", MODES)
def test_the_estimate_is_within_a_fifth_of_what_is_measured(hvp: str) -> None:
    settings, described = config(), description()
    need = MemoryPlan(settings, described).need(hvp)
    got = measured(settings, described, hvp)
    print(
        f"{hvp}: planned {need.gradients + need.activations:,}, measured {got:,}, ratio"
        f" {(need.gradients + need.activations) / got:.3f}"
    )
    assert 0.8 < (need.gradients + need.activations) / got < 1.2


@pytest.mark.parametrize(
    ("method", "trainable", "more"),
    [
        ("surgery", "labels_and_adaln:3", {}),
        ("uno", "all", {}),
        ("uno", "adaln:3", {"targets": "data"}),
        ("exchange", "labels", {}),
    ],
)
def test_other_methods_and_subsets(method: str, trainable: str, more: dict[str, Any]) -> None:
    settings, described = (
        config(method={"name": method, **more}, trainable=trainable),
        description(learn_sigma=True),
    )
    need = MemoryPlan(settings, described).need("exact")
    got = measured(settings, described, "exact")
    print(f"{method} {trainable}: ratio {(need.gradients + need.activations) / got:.3f}")
    assert 0.8 < (need.gradients + need.activations) / got < 1.2


@pytest.mark.parametrize("method", ["exchange", "surgery"])
def test_depth_weights_with_its_further_rows(method: str) -> None:
    values = {
        "model": {"size": "DiT-small"},
        "request": {"classes": [1], "exchange": {1: 9}},
        "method": {"depth": "weights", "name": method},
        "partition": {"lanes": 8},
        "optim": {"batch_size": ROWS},
        "redirection": dict.fromkeys(("rows", "label_rows", "near_rows", "pool"), ROWS) | {"others_rows": 16},
        "train": {"workers": 1},
    }
    settings, described = parse(UnlearnConfig, values), description()
    plan = MemoryPlan(settings, described)
    need, said = plan.need("exact"), plan.lines(None)[2]
    assert "8 retained, " in said and "16 under other labels, 8 of near classes, 8 under adv" in said
    model = build(described)
    named = select(model, settings.trainable)
    teacher, section = Teacher(model, named), settings.redirection
    adversary = Adversary(
        model,
        [1],
        [2],
        size=section.pool,
        buckets=section.buckets,
        rates=section.embedding_lr,
        restart_every=9,
        seed=0,
    )

    def rows(count: int) -> Rows:
        x0, y = torch.rand(count, *model.shape), torch.ones(count, dtype=torch.long)
        return Rows(x0=x0, y=y, target_y=y, noise=Noise(t=y, eps=x0))

    data = RedirectionRows(held=[(1.0, rows(count)) for count in (8, 8, 8, 16, 8)], adversarial=rows(8))

    def run() -> None:
        terms = redirection_terms(model, data, section.weight, teacher=teacher, adversary=adversary)
        local = LocalGradients(params=list(named.values()), terms=terms, hvp="exact")
        gradients = Gradients(index=1, local=local, collectives=Collectives())
        METHODS[method].gradient(gradients, method_settings(method, {}))

    got = peak_bytes(run)
    print(f"{method}: ratio {(need.gradients + need.activations) / got:.3f}")
    assert 0.8 < (need.gradients + need.activations) / got < 1.2


def test_counts_of_the_published_model() -> None:
    names = [""] * 1000
    plan = MemoryPlan(
        config(model={"size": "DiT-XL/2"}, trainable="labels_and_adaln:4"),
        dit_description("DiT-XL/2", shape=(4, 32, 32), num_classes=1000, class_names=names, latent=True),
    )
    assert plan.parameters == 675_129_632 and plan.trainable == 33_031_296
    assert plan.reduced == 2.5 * plan.trainable  # a UNO step reduces 3 P, a surgery step 2 P, in turn


@pytest.mark.parametrize(
    ("method", "vectors"),
    [
        *(("exchange", 1), ("surgery", 2), ("uno", 3), ("ascent", 1), ("ascent_descent", 1), ("esd", 1)),
        *(("salun", 2), ("sfr_on", 1), ("erasediff", 2), ("siss", 3), ("selective_amnesia", 3)),
    ],
)
def test_reduced_elements_follow_the_method(method: str, vectors: float) -> None:
    plan = MemoryPlan(config(method={"name": method}), description(depth=2))
    assert plan.reduced == vectors * plan.trainable
    assert plan.second_order == (method == "uno")


def test_exact_gives_way_to_recompute_and_smaller_pieces() -> None:
    small = {"trainable": "labels_and_adaln:1"}
    plan = MemoryPlan(config(**small), description(depth=1))
    exact, recompute, pieces = plan.need("exact"), plan.need("recompute", ROWS), plan.need("recompute", 2)
    assert pieces.total < recompute.total < exact.total
    roomy, tight, tighter, hopeless = (
        plan.choose(need / 0.9 / GIB)
        for need in (exact.total + 1, recompute.total + 1, pieces.total + 1, exact.weights)
    )
    assert (roomy.hvp, roomy.micro_batch, roomy.fits) == ("exact", None, True) and "it fits" in roomy.why
    assert (
        (tight.hvp, tight.micro_batch) == ("recompute", ROWS)
        and "exact needs" in tight.why
        and "too much" in tight.why
    )
    assert (tighter.hvp, tighter.micro_batch) == ("recompute", 2)
    assert not hopeless.fits
    assert plan.choose(None).hvp == "exact"
    said = "\n".join(plan.lines(None))
    assert "trainable" in said and all(mode in said for mode in MODES)
    other = MemoryPlan(config(method={"hvp": "fd_central"}, **small), description(depth=1))
    assert other.choose(other.need("fd_central").total * 0.5 / GIB).fits is False
    first_order = MemoryPlan(config(method={"name": "exchange"}, **small), description(depth=1))
    assert "no second derivative" in first_order.choose(80).why
    some = first_order.choose(first_order.need("exact", ROWS // 4).total * 1.001 / 0.9 / GIB)
    assert (some.micro_batch, some.fits) == (ROWS // 4, True) and "the step needs" in some.why
    assert not first_order.choose(first_order.need("exact").weights / GIB).fits


def test_bfloat16_takes_less_than_float32() -> None:
    described = description(width=192)
    half, full = (
        MemoryPlan(config(train={"workers": 1, "precision": p}), described).need("exact")
        for p in ("bf16", "fp32")
    )
    assert 0.4 < half.activations / full.activations < 0.9
