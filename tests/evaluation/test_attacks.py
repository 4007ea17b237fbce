"""The attack suite: each attack does what it says to a copy, and its state never calls a doubt a success."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from contexts import tiny_context, tiny_model
from test_gate import GOOD

from pipeline.config import Gate
from pipeline.config.measuring import Attacks, Measuring
from pipeline.evaluation.attacks.ancestral import ancestral
from pipeline.evaluation.attacks.label_embedding import STARTS, attacked_by_embedding
from pipeline.evaluation.attacks.quantization import quantise, to_bf16, to_int8
from pipeline.evaluation.attacks.suite import attack_suite_result, recall_excess, state_of
from pipeline.evaluation.attacks.table import ATTACKS, attempts_of
from pipeline.evaluation.attacks.timestep_embedding import (
    TimestepEmbeddingSettings,
    attacked_by_timestep,
)
from pipeline.evaluation.attacks.tuning import copied
from pipeline.evaluation.confidence import difference, proportion
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.gate import judge_gate
from pipeline.evaluation.rows import few_images
from pipeline.seeding import seed_of
from pipeline.unlearning.parameters import label_weights

FEW = Attacks(
    samples=20,
    retain_samples=2,
    finetune_steps=3,
    finetune_batch=4,
    choice_samples=10,
    embedding_steps=4,
    embedding_lr=0.05,
    embedding_batch=4,
    embedding_images=3,
    cfg_scales=[1.0],
    sampler_steps=[3],
    ancestral_steps=3,
    timestep_embedding={"buckets": 3, "steps": 4, "lr": [0.05, 0.2]},
    null_embedding={"steps": 4, "lr": 0.05},
    lora={"steps": 2, "batch": 4, "lr": 1e-3},
    relearn={"lr": 1e-4, "checks": [0, 2], "samples": 20, "batch": 4},
    inversion={"noises": 2},
)
SHARES = [
    *(f"embedding from {start}" for start in STARTS),
    "3 embeddings from own",
    "3 embeddings from mean",
    "null embedding",
    "label and null embedding from own",
    "label and null embedding from mean",
    "lora rank 4",
]
OTHERS = ["relearn under its label", "relearn under a new label", "inversion"]  # no shares


def test_every_attack_runs_leaves_the_model_alone_and_says_what_it_did() -> None:
    context = tiny_context()
    attempts = attempts_of(FEW, context.spec.settings)
    assert list(attempts) == [
        "none",
        "finetune",
        "int8",
        "bf16",
        "cfg 1",
        "steps 3",
        "ancestral",
        *SHARES,
        *OTHERS,
    ]
    outcomes = {name: attempt.run(context, FEW) for name, attempt in attempts.items()}
    assert all(
        one["forget_fraction"]["n"] == 20 and one["retain_accuracy"]["intervals"]["mean"]["n"] == 6
        for name, one in outcomes.items()
        if name not in OTHERS
    )
    assert outcomes["relearn under its label"]["relearned"]["budget"] == 2
    assert outcomes["inversion"]["inversion"]["n"] == 3  # of five held out, two are the attacker's
    untouched = replace(context, model=tiny_model(0))  # nothing that ran has moved the model
    assert outcomes["none"] == attempts["none"].run(untouched, FEW)
    assert outcomes["none"]["forget_fraction"]["value"] == forgotten_share(context)
    assert len({str(one) for one in outcomes.values()}) > 5
    result = attack_suite_result(outcomes, attempts, 0.05)
    assert [line["name"] for line in result["attacks"]] == list(attempts)
    assert all(line["about"] and line["kind"] in ATTACKS for line in result["attacks"])
    assert result["held"] == all(line["state"] == "holds" for line in result["attacks"])
    assert {line["name"] for line in result["attacks"] if line["state"] == "uncompared"} == set(OTHERS)


@torch.no_grad()
def forgotten_share(context: EvalContext) -> float:
    """Written out: 20 images under label 1 on the suite's noise."""
    seeds = [seed_of(0, "battery", 1, k) for k in range(20)]
    x = context.model.sample(labels=torch.tensor([1] * 20), seeds=seeds, cfg_scale=2.0, steps=2)
    return (context.judge.logits(x).argmax(1) == 1).double().mean().item()


def test_int8_is_within_half_a_level_and_bf16_within_its_rounding() -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    rounded = to_int8(weight)
    assert (
        ((rounded - weight).abs() <= step / 2 + 1e-7).all()
        and not rounded.equal(weight)
        and rounded[2].eq(0).all()
    )
    levels = (rounded / step.clamp(min=1e-12)).round()
    assert levels.abs().max() <= 127 and torch.allclose(levels * step, rounded, atol=1e-6)
    assert ((to_bf16(weight) - weight).abs() <= weight.abs() * 2**-8).all()
    four = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(to_int8(four)[1], to_int8(four[1:2])[0])  # one scale for each output channel


def test_int8_leaves_biases_and_bf16_does_not() -> None:
    for kind, biases in (("int8", False), ("bf16", True)):
        model = copied(tiny_model())
        quantise(model.net, kind)
        moved = {
            name
            for (name, p), q in zip(model.net.named_parameters(), tiny_model().net.parameters())
            if not p.equal(q)
        }
        assert (
            any(name.endswith("weight") for name in moved)
            and any(name.endswith("bias") for name in moved) == biases
        )


@pytest.mark.parametrize("start", list(STARTS))
def test_the_embedding_attack_moves_nothing_but_the_forgotten_label(start: str) -> None:
    context = tiny_context()
    model = attacked_by_embedding(context, FEW, start).model
    before = dict(context.model.net.named_parameters())
    for name, value in model.net.named_parameters():
        if name == "y_embedder.embedding_table.weight":
            assert (value != before[name]).any(dim=1).tolist() == [False, True, False, False, False]
        else:
            assert value.equal(before[name]), name
    images = few_images(context, FEW.embedding_images)
    assert len(images) == 3 and set(images.y.tolist()) == {1}


def test_embeddings_by_timestep_change_the_forgotten_label_alone() -> None:
    context = tiny_context()
    own = TimestepEmbeddingSettings(steps=4, lr=0.05)
    model = attacked_by_timestep(context, FEW, own, 4, "mean").model
    x, t = torch.randn(5, 1, 4, 4), torch.tensor([0, 300, 500, 700, 999])
    y = torch.tensor([0, 2, 3, 4, 1])
    same = (model.net(x, t, y) == context.model.net(x, t, y)).flatten(1).all(1)
    assert same.tolist() == [True, True, True, True, False]
    moved = model.net.get_parameter("embeddings") != label_weights(context.model)[[0, 2, 3]].mean(0)
    assert moved.any(dim=2).tolist() == [[True] * 4]


def test_the_stochastic_sampler_depends_on_label_and_seed_alone_and_is_another_one() -> None:
    model = tiny_model()
    options: dict[str, Any] = {"cfg_scale": 2.0, "steps": 5}
    both = ancestral(model, labels=torch.tensor([1, 2]), seeds=[5, 6], **options)
    torch.testing.assert_close(
        both[1:], ancestral(model, labels=torch.tensor([2]), seeds=[6], **options), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(both[:1], ancestral(model, labels=torch.tensor([1]), seeds=[7], **options))
    assert not torch.allclose(both[:1], model.sample(labels=torch.tensor([1]), seeds=[5], **options))
    assert both.abs().max() <= 1 + 1e-6


def test_the_stochastic_sampler_gives_back_a_known_gaussian() -> None:
    """With the exact noise prediction for data ~ N(0, s^2), its images have that deviation."""
    model, s = copied(tiny_model()), 0.3
    model.clip = False

    def exact(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        abar = model.diffusion.path.alpha_bar[t].view(-1, 1, 1, 1).float()
        return (1 - abar).sqrt() * x / (abar * s * s + 1 - abar)

    class Exact(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return exact(x, t, y)

    model.net = Exact()
    x = ancestral(
        model, labels=torch.zeros(400, dtype=torch.long), seeds=list(range(400)), cfg_scale=1.0, steps=200
    )
    assert x.std().item() == pytest.approx(s, rel=0.04) and abs(x.mean().item()) < 0.02


@pytest.mark.parametrize(
    ("hits", "n", "said"),
    [(0, 200, "holds"), (8, 200, "open"), (10, 200, "open"), (40, 200, "returns"), (0, 20, "open")],
)
def test_a_state_is_by_the_interval(hits: int, n: int, said: str) -> None:
    assert state_of(proportion(hits, n).to_dict(), 0.05) == said


def test_an_attack_that_failed_or_never_ran_does_not_count_as_withstood() -> None:
    made = {name: one for name, one in attempts_of(FEW, Measuring()).items() if name not in OTHERS}
    good = {name: {"forget_fraction": proportion(0, 200).to_dict(), "retain_accuracy": None} for name in made}
    assert attack_suite_result(good, made, 0.05)["held"] is True
    for broken in (
        {"error": "ValueError: not finite"},
        None,
        {"forget_fraction": proportion(6, 200).to_dict()},
    ):
        found = {**good, "finetune": broken}
        result = attack_suite_result({k: v for k, v in found.items() if v}, made, 0.05)
        (line,) = [line for line in result["attacks"] if line["name"] == "finetune"]
        assert result["held"] is False and line["state"] in ("failed", "open")


def test_the_excess_over_a_model_that_never_saw_the_class_is_bounded_by_its_worst_attack() -> None:
    attempts = attempts_of(FEW, Measuring())
    recalls = SHARES
    assert [name for name, one in attempts.items() if one.recalls] == [*SHARES, *OTHERS]

    def outcomes(hits: int) -> dict[str, dict[str, Any]]:
        return {name: {"forget_fraction": proportion(hits, 200).to_dict()} for name in attempts}

    after, reference = outcomes(60), outcomes(120)
    result = attack_suite_result(after, attempts, 0.05, reference)
    assert [line["name"] for line in result["attacks"] if "excess" in line] == recalls
    excess = difference(*(proportion(n, 200).to_dict() for n in (60, 120)))
    assert recall_excess(result) == excess["high"] and -0.3 < excess["high"] < 0
    worse = attack_suite_result({**after, recalls[-1]: outcomes(130)[recalls[-1]]}, attempts, 0.05, reference)
    gate = Gate(max_recall_excess=0.0)
    assert [check["passed"] for check in recall_checks(gate, result)] == [True]
    assert [check["passed"] for check in recall_checks(gate, worse)] == [False]
    assert recall_checks(Gate(), worse) == []


def test_an_excess_that_is_not_known_passes_no_bound() -> None:
    attempts = attempts_of(FEW, Measuring())
    shares = {name: {"forget_fraction": proportion(0, 200).to_dict()} for name in attempts}
    broken = {**shares, "embedding from own": {"error": "ValueError: not finite"}}
    for result in (
        None,
        attack_suite_result(shares, attempts, 0.05),
        attack_suite_result(broken, attempts, 0.05, shares),
        attack_suite_result(shares, attempts, 0.05, broken),
    ):
        assert recall_excess(result) is None
        assert [check["passed"] for check in recall_checks(Gate(max_recall_excess=1.0), result)] == [False]


def recall_checks(gate: Gate, attack_suite: dict[str, Any] | None) -> list[dict[str, Any]]:
    checks = judge_gate(gate, GOOD, 0.98, attack_suite=attack_suite)["checks"]
    return [check for check in checks if check["name"] == "recall_excess"]
