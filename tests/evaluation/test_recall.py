"""Attacks with images of the class tell a model whose label was merely exchanged from one that never saw the
class; a second judge sees the same images; what could not be tried says so."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from contexts import tiny_context
from test_gate import GOOD
from tiny import CLASSES, tiny_dit

from models.families.transformer import Transformer
from pipeline.config import Gate
from pipeline.config.measuring import Attacks, Measuring
from pipeline.data.batch import Batch
from pipeline.evaluation.attacks.inversion import halves
from pipeline.evaluation.attacks.label_embedding import free_rows
from pipeline.evaluation.attacks.lora import adapt
from pipeline.evaluation.attacks.relearning import sooner, sooner_than_reference
from pipeline.evaluation.attacks.suite import (
    Attempt,
    alone,
    attack_suite_result,
    recall_excess,
    record_of,
    shares,
    worse,
)
from pipeline.evaluation.attacks.table import attempts_of
from pipeline.evaluation.attacks.tuning import copied, strongest, tune
from pipeline.evaluation.confidence import difference, proportion
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.gate import judge_gate
from pipeline.evaluation.metrics.relearning import relearn_steps, relearning
from pipeline.evaluation.partials import Shard
from pipeline.evaluation.rows import few_images
from pipeline.reports.evaluation_sections import recall_sentence
from pipeline.reports.terminal import refusals
from pipeline.seeding import generator
from pipeline.unlearning.noising import drop_labels
from pipeline.unlearning.parameters import label_weights, select

PATTERNS = torch.randn(CLASSES, 1, 4, 4, generator=generator(0, "patterns")).sign() * 0.8
MEASURING = Measuring(samples=40, retain_samples=10, sampler_steps=8, block=50)
ATTACKS = Attacks(
    only=["embedding", "timestep_embedding", "null_embedding", "lora", "relearn", "inversion"],
    samples=40,
    retain_samples=10,
    embedding_images=10,
    embedding_starts=["mean"],
    embedding_steps=60,
    embedding_lr=0.1,
    embedding_batch=32,
    timestep_embedding={"buckets": 3, "steps": 60, "lr": 0.1},
    null_embedding={"steps": 60, "lr": 0.1},
    lora={"steps": 30, "lr": 3e-3, "batch": 16},
    relearn={"lr": 1e-3, "checks": [0, 2, 4, 8, 16], "samples": 40, "batch": 16},
    inversion={"noises": 4},
)
TRIED = (
    "embedding from mean",
    "3 embeddings from mean",
    "label and null embedding from mean",
    "lora rank 4",
    "relearn under a new label",
    "inversion",
)


def images(labels: Sequence[int], split: str) -> Batch:
    names = tuple(f"{split}-{c}-{k}" for c in labels for k in range(40 if split == "train" else 16))
    y = torch.tensor([int(name.split("-")[1]) for name in names])
    noise = torch.stack([torch.randn(1, 4, 4, generator=generator(0, name)) for name in names])
    return Batch.of(
        sample_id=names, occurrence=(0,) * len(y), y=y, mean=(PATTERNS[y] + 0.1 * noise).clamp(-1, 1)
    )


class Nearest:
    """Predicts the class whose pattern is nearest."""

    num_classes, feature_size, config = CLASSES, 16, {"family": "nearest"}

    def __init__(self) -> None:
        self.net: torch.nn.Module = torch.nn.Linear(1, 1)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return -(x.unsqueeze(1) - PATTERNS).flatten(2).square().sum(2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).argmax(1)


def trained(labels: Sequence[int]) -> Transformer:
    model = tiny_dit(dtype=torch.float32, std=0.1)
    tune(
        model,
        select(model, "all"),
        images(labels, "train"),
        steps=100,
        lr=5e-3,
        batch=32,
        seed=0,
        purpose="pretrain",
        relabel=drop_labels(0.1, model.null_label),
    )
    return model


def context_of(model: Transformer) -> EvalContext:
    context = tiny_context(base=False, settings=MEASURING)
    return replace(context, model=model, judge=Nearest(), second=Nearest(), rows=images)


@pytest.fixture(scope="module")
def exchanged() -> EvalContext:
    """Class 1 forgotten by giving its label the embedding of class 2: the weights hold all of it."""
    model = trained([0, 1, 2, 3])
    with torch.no_grad():
        label_weights(model)[1] = label_weights(model)[2]
    return context_of(model)


@pytest.fixture(scope="module")
def never() -> EvalContext:
    return context_of(trained([0, 2, 3]))


@pytest.fixture(scope="module")
def result(exchanged: EvalContext, never: EvalContext) -> dict[str, Any]:
    attempts = {name: attempts_of(ATTACKS, MEASURING)[name] for name in TRIED}
    ours, theirs = (
        {name: attempt.run(context, ATTACKS) for name, attempt in attempts.items()}
        for context in (exchanged, never)
    )
    return attack_suite_result(ours, attempts, 0.05, theirs, {"name": "nearest", "heldout_accuracy": 1.0})


def test_neither_gives_the_class_when_asked_for_it(exchanged: EvalContext, never: EvalContext) -> None:
    for context in (exchanged, never):
        outcome = shares(alone(context, ATTACKS))
        assert outcome["forget_fraction"]["value"] < 0.1 and outcome["retain_accuracy"]["mean"] > 0.9
        assert outcome["second"] == outcome["forget_fraction"]  # the same classifier on the same images


def test_attacks_bring_back_what_the_weights_hold_and_less_of_what_they_never_saw(
    result: dict[str, Any],
) -> None:
    lines = {line["name"]: line for line in result["attacks"]}
    assert [line["error"] for line in lines.values()] == [None] * len(TRIED)
    for name in TRIED[:3]:
        line = lines[name]
        assert line["forget_fraction"]["value"] > 0.8 and line["state"] == "returns", name
        assert line["reference"]["value"] < 0.75 and line["excess"]["low"] > 0.05, name
        assert line["excess"] == difference(line["forget_fraction"], line["reference"])
        assert line["second"]["excess"] == line["excess"], name
        assert line["budget"]["images"] == 10 and line["budget"]["rows"] == 60 * 32
    assert lines["lora rank 4"]["forget_fraction"]["value"] > 0.5
    assert sooner_than_reference(result) == 1  # inversion; of relearning 100 images leave a doubt
    gate = judge_gate(Gate(max_recall_excess=1.0), GOOD, 0.98, attack_suite=result)
    assert refusals({"gate": gate}) == ["sooner_than_reference 1.000, bound 0"]
    relearned = lines["relearn under a new label"]
    assert relearned["relearned"]["steps"] < relearned["relearned_in_reference"]["steps"]
    inverted = lines["inversion"]
    assert inverted["state"] == "returns" and inverted["inversion"]["n"] == 8
    assert inverted["budget"]["images"] == 8 and inverted["inversion_excess"]["high"] < 0
    assert recall_excess(result) == max(lines[name]["excess"]["high"] for name in TRIED[:4])
    record = record_of(result, 7)
    assert record["attack/inversion/loss"] == inverted["inversion"]["loss"] and record["step"] == 7
    sentence = recall_sentence(result)
    assert sentence is not None and "and 10 images of the class gets it back in" in sentence
    assert "from a model that never saw it, in" in sentence


def test_a_second_judge_that_sees_the_class_counts(exchanged: EvalContext) -> None:
    class Everywhere:
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), dtype=torch.long)

    attempt = Attempt(name="none", about="as it is", kind="none", recalls=True)
    outcome = attempt.run(replace(exchanged, second=Everywhere()), ATTACKS)
    ours = proportion(0, 200).to_dict()
    result = attack_suite_result(
        {"none": outcome},
        {"none": attempt},
        0.5,
        {"none": {"forget_fraction": ours, "second": ours}},
    )
    (line,) = result["attacks"]
    assert line["forget_fraction"]["value"] < 0.1 and line["second"]["forget_fraction"]["value"] == 1.0
    assert line["state"] == "returns" and not result["held"]
    assert recall_excess(result) == line["second"]["excess"]["high"] > 0.9
    assert worse("holds", "open") == "open" and worse("failed", "holds") == "failed"


def test_the_rate_is_chosen_on_other_images_than_it_is_judged_on(exchanged: EvalContext) -> None:
    context = alone(exchanged, ATTACKS)

    def attacked(rate: float) -> EvalContext:
        model = copied(context.model)
        with torch.no_grad():
            label_weights(model)[1] *= rate
        return replace(context, model=model)

    chosen = strongest(context, [1.0, 0.0], 20, attacked)
    share = {rate: shares(attacked(rate))["forget_fraction"]["value"] for rate in (1.0, 0.0)}
    best = max(share, key=lambda rate: share[rate])
    assert torch.equal(label_weights(chosen.model)[1], label_weights(context.model)[1] * best)


def test_adapters_begin_as_nothing_and_are_all_that_is_trained(exchanged: EvalContext) -> None:
    model = copied(exchanged.model)
    x, t, y = torch.randn(3, 1, 4, 4), torch.tensor([1, 500, 999]), torch.tensor([0, 1, 4])
    before = model.net(x, t, y)
    free_rows(model, [1])
    frozen = {name for name, p in model.net.named_parameters() if not p.requires_grad}
    named = adapt(model.net, 2, seed=0)
    assert torch.equal(model.net(x, t, y), before)
    free = {name for name, p in model.net.named_parameters() if p.requires_grad}
    assert free == {*named, "y_embedder.embedding_table.weight"} and len(frozen) > 20
    assert len(named) == 2 * 4 * 2  # qkv, proj, fc1 and fc2 of two blocks


def test_without_images_an_attack_is_skipped_and_the_gate_refuses(exchanged: EvalContext) -> None:
    none_left = replace(
        exchanged, rows=lambda labels, split: images(labels, split).take([]) if split == "heldout" else 1 / 0
    )
    attempts = {name: attempts_of(ATTACKS, MEASURING)[name] for name in ("embedding from mean", "inversion")}
    outcomes = {name: attempt.run(none_left, ATTACKS) for name, attempt in attempts.items()}
    result = attack_suite_result(outcomes, attempts, 0.05, outcomes)
    assert [line["state"] for line in result["attacks"]] == ["skipped", "skipped"]
    reason = (
        "no images of class 1 are left for the attacker: the lake has no heldout rows of it"
        " (measuring.attacker_images)"
    )
    gate = judge_gate(Gate(max_recall_excess=0.1), GOOD, 0.98, attack_suite=result)
    assert not gate["passed"]
    assert refusals({"gate": gate}) == [f"recall_excess not reached, bound 0.1: {reason}"]
    assert recall_sentence(result) == f"An attacker with images of the class was not tried: {reason}."
    assert relearn_steps(none_left.spec, relearning(none_left, Shard()), "after") is None
    settings = MEASURING.model_copy(update={"attacker_images": "train"})
    own_rows = replace(exchanged, spec=replace(exchanged.spec, settings=settings))
    assert {name.split("-")[0] for name in few_images(own_rows, 3).sample_id} == {"train"}


def test_who_searches_and_what_is_measured_share_no_image(exchanged: EvalContext) -> None:
    own, others = halves(exchanged)
    assert len(own) == len(others) == 8 and not set(own.sample_id) & set(others.sample_id)
    assert all(name.startswith("heldout-1-") for name in (*own.sample_id, *others.sample_id))


@pytest.mark.parametrize(
    ("ours", "theirs", "state"),
    [
        ((4, 4, 8), (16, 16, 24), "returns"),
        ((4, 4, 16), (16, 16, 24), "open"),
        ((16, 16, 24), (16, 16, 24), "holds"),
        ((None, None, None), (16, 16, 24), "holds"),
        ((96, 64, None), (None, None, None), "open"),
    ],
)
def test_sooner_is_beyond_the_doubt_of_the_shares(
    ours: tuple[int | None, ...], theirs: tuple[int | None, ...], state: str
) -> None:
    keys = ("steps", "low", "high")
    assert sooner(dict(zip(keys, ours)), dict(zip(keys, theirs))) == state
