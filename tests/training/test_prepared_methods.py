"""Moments of their own for what forgets and what retains, methods that prepare themselves, and requests that
a method has no answer to."""

from typing import Any

import pytest
import torch
from runs import run, run_config, run_inputs, steps_of
from torch import Tensor

from models.weights import weights_digest
from pipeline.config import UnlearnConfig, parse
from pipeline.errors import InputError
from pipeline.runs.request_checks import resolve
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.step import open_state
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.table import METHODS, Method
from pipeline.unlearning.optimizer import adamw, apply_gradient
from pipeline.unlearning.parameters import flat

SEPARATE = {"optim.separate_moments": True, "optim.ema": 0.5}
RUNS: dict[str, dict[str, Any]] = {
    "sfr_on": {"method.name": "sfr_on", "method.fisher_rows": 5, **SEPARATE},
    "siss": {"method.name": "siss", "request": {"sample_ids": "ids.txt"}, **SEPARATE},
    "selective_amnesia": {
        "method.name": "selective_amnesia",
        "method.replay_rows": 6,
        "method.fisher_rows": 2,
        "method.fisher_chunks": 5,
        "optim.micro_batch": 4,
    },
}


def toy(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """A forgetting part at odd steps, a retaining one at all."""
    (like,) = gradients.of("retain")
    g = torch.Generator().manual_seed(gradients.index)
    forget, retain = (torch.randn(like.shape, generator=g, dtype=like.dtype) for _ in range(2))
    return gradients.sum_of(forget=100 * forget if gradients.index % 2 else None, retain=retain)


@pytest.mark.parametrize("separate", [True, False])
def test_each_part_has_moments_of_its_own(separate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", Method(gradient=toy, title="", meaning="", source="", summands=True))
    changes = {"method": {"name": "toy"}, "optim.separate_moments": separate, "optim.clip": 1.0}
    _, named, _ = steps_of(changes, 4)
    params = list(open_state(run_inputs(run_config(), dtype=torch.float64)).named.values())
    forgets, retains = (adamw(params, lr=1e-2, weight_decay=0.0) for _ in range(2))
    size = flat(params, params).numel()
    for step in range(1, 5):
        g = torch.Generator().manual_seed(step)
        forget, retain = (torch.randn(size, generator=g, dtype=torch.float64) for _ in range(2))
        parts = [(forgets, 100 * forget)] * (step % 2) + [(retains, retain)]
        if not separate:
            parts = [(retains, sum((part for _, part in parts[1:]), parts[0][1]))]
        for optimizer, part in parts:
            apply_gradient(optimizer, params, part, lr=1e-2, clip=1.0)
    for got, wanted in zip(named.values(), params, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RUNS)
def test_a_continued_run_prepares_again_and_equals_an_uninterrupted_one_to_the_bit(name: str) -> None:
    config = run_config(**RUNS[name])
    whole, _, saved = run(config)
    rest, _, _ = run(config, Checkpoint.from_files(saved[1]))
    assert weights_digest(rest.trained) == weights_digest(whole.trained)
    assert weights_digest(run(run_config(**{**RUNS[name], "seed": 1}))[0].trained) != weights_digest(
        whole.trained
    )


def test_a_budget_of_cpu_seconds_ends_a_run_at_its_next_check() -> None:
    outcome, records, _ = run(run_config(**{**RUNS["sfr_on"], "optim.max_cpu_seconds": 1e-9}))
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == [0, 2] and outcome.steps == 2
    assert outcome.timing["prepare_cpu_seconds"] > 0 and outcome.timing["step_cpu_seconds"] > 0
    assert run(run_config(**{"optim.max_cpu_seconds": 1e9}))[0].steps == 6


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"method": {"name": "uno_s"}, "optim": {"separate_moments": True}},
            r"optim\.separate_moments: got true with method\.name uno_s, .*; expected one of ascent_des",
        ),
        (
            {"method": {"name": "siss"}, "request": {"classes": [0, 1], "exchange": {0: 2}}},
            r"request\.exchange: class 1 has none, .* --set 'request\.exchange=\{0: 2, 1: <class>\}'",
        ),
        *(
            (
                {"method": {"name": name}, "request": {"sample_ids": "ids.txt"}},
                rf"request\.sample_ids: got named samples with method\.name {name}, ",
            )
            for name in ("esd", "selective_amnesia")
        ),
    ],
)
def test_what_a_method_has_no_answer_to_is_refused_in_one_line(values: dict[str, Any], says: str) -> None:
    request = {"request": {"classes": [1], "exchange": {1: 2}, "without_exchange": True}}
    merged = {**request, **values}
    merged["request"] = {"without_exchange": True, **merged["request"]}
    with pytest.raises(InputError, match=says) as refusal:
        resolve(parse(UnlearnConfig, merged), {c: str(c) for c in range(4)})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["salun", "erasediff", "siss", "selective_amnesia"])
def test_a_method_of_labels_is_refused_for_a_model_without(name: str) -> None:
    config = parse(UnlearnConfig, {"method": {"name": name}, "request": {"classes": [1]}})
    with pytest.raises(InputError, match=f"method.name: got {name}, but .* samples without labels"):
        resolve(config, {c: str(c) for c in range(4)}, conditional=False)
