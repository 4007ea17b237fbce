"""The same loop on a model without labels: shares instead of accuracies, the hat term, and what requests and
settings are refused."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from distributed import run_world
from runs import run_config, run_inputs
from tiny import tiny_batch, tiny_dit, tiny_judge, tiny_vae

from models.diffusion import Noise
from models.judge import Judge
from pipeline.data.cycle import Cycle
from pipeline.errors import InputError
from pipeline.runs.request_checks import require_fit, resolve
from pipeline.seeding import generator
from pipeline.training.loop import Hooks, Outcome, unlearn
from pipeline.training.periodic_eval import Check, check
from pipeline.unlearning.experimental.latent_reflection import (
    Fold,
    Folds,
    ReflectingTeacher,
    folds_between,
)
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.parameters import select
from pipeline.unlearning.teacher import Teacher

VAE: dict[str, Any] = {
    "model.size": "vae-mnist",
    "request.exchange": {},
    "method.name": "uno_s",
    "method.targets": "data",
    "method.penalty": 0.1,
    "method.uniformity_weight": 2.0,
    "trainable": "decoder",
    "evaluate.samples": 40,
    "optim.clip": None,
}
NAMES = {label: str(label) for label in range(4)}


def unconditional(
    changes: dict[str, Any],
    records: list[dict[str, Any]] | None = None,
    uniformity_judge: Judge | None = None,
) -> Outcome:
    """A whole run of the tiny VAE on this process's share."""
    config = run_config(**{**VAE, **changes})
    inputs = run_inputs(config)
    model = tiny_vae(dtype=torch.float32)
    if config.method.latent_reflection:
        forget = inputs.streams.forget.side
        folds = Folds(by_class={1: Fold(normal=torch.tensor([0.6, 0.8], dtype=torch.float64), edge=-1.0)})
        streams = replace(inputs.streams, exchange=Cycle(forget, config.seed, "exchange"))
        inputs = replace(inputs, streams=streams, teacher=partial(ReflectingTeacher, folds=folds))
    return unlearn(
        replace(inputs, model=model, uniformity_judge=uniformity_judge),
        hooks=Hooks(record=(records if records is not None else []).append),
    )


def trained(changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    return dict(unconditional(changes).trained)


def test_a_run_measures_shares_and_moves_the_decoder_alone() -> None:
    records: list[dict[str, Any]] = []
    outcome = unconditional({}, records)
    assert outcome.trained and all(name.startswith("decoder.") for name in outcome.trained)
    for side in (outcome.before, outcome.after):
        shares = side["class_shares"]
        assert (
            sum(shares["per_class"].values()) == pytest.approx(1)
            and shares["n"] == 100
            and shares["chance"] == 0.25
        )
        assert (
            side["forget_fraction"]["value"] == shares["per_class"]["1"]
            and side["forget_fraction"]["n"] == 100
        )
        assert side["retain_accuracy"] == {
            "mean": None,
            "min": None,
            "neighbours": None,
            "per_class": {},
            "intervals": {},
        }
        assert side["fid"]["judge"] >= 0
    checks = [record for record in records if record["kind"] == "evaluation" and record["step"] > 0]
    assert [check["step"] for check in checks] == [2, 4, 6]
    assert all(check["forget_fraction"] == check["class_share/1"] for check in checks)
    assert len({check["fid/judge"] for check in checks}) == 3  # fresh noise, moving weights
    base, now = tiny_vae(dtype=torch.float32).net.state_dict(), outcome.trained
    assert all(not torch.equal(base[name], value) for name, value in now.items())


def test_the_hat_term_is_felt() -> None:
    with_hat, without = unconditional({}).trained, unconditional({"method.uniformity_weight": 0.0}).trained
    assert any(not torch.allclose(with_hat[name], without[name]) for name in with_hat)


def test_the_hat_term_may_have_another_judge_than_the_one_that_measures() -> None:
    same, other = (
        unconditional({}, uniformity_judge=tiny_judge()),
        unconditional({}, uniformity_judge=tiny_judge(seed=1)),
    )
    own = unconditional({})
    assert all(torch.equal(same.trained[name], value) for name, value in own.trained.items())
    assert any(not torch.equal(other.trained[name], value) for name, value in own.trained.items())
    assert own.before == other.before  # measured by the same one


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_fold_drives_a_run_against_a_teacher(world_size: int) -> None:
    folded = {
        "method.latent_reflection": True,
        "method.targets": "teacher",
        "method.uniformity_weight": 0.0,
        "optim.max_steps": 4,
    }
    wanted = trained(folded)
    base = tiny_vae(dtype=torch.float32).net.state_dict()
    assert any(not torch.equal(base[name], value) for name, value in wanted.items())
    for found in run_world(world_size, trained, folded) if world_size > 1 else []:
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-5), name


def test_folds_are_fitted_where_the_base_model_has_the_rows() -> None:
    model = tiny_vae(dtype=torch.float32)
    with torch.no_grad():
        for index, parameter in enumerate(model.net.parameters()):
            parameter.normal_(std=0.7, generator=generator("alive", index))
    kept, forget = tiny_batch([0], each=40), tiny_batch([1, 3], each=30)
    folds = folds_between(model, [kept.mean[:7], kept.mean[7:]], forget, [1, 3], torch.device("cpu"))
    assert model.net.training and set(folds.by_class) == {1, 3}
    model.net.eval()
    for label, fold in folds.by_class.items():
        own = model.vae.encode(forget.mean[forget.y == label])[0].detach().double() @ fold.normal
        others = model.vae.encode(kept.mean)[0].detach().double() @ fold.normal
        assert ((own > fold.edge).double().mean() + (others <= fold.edge).double().mean()) / 2 > 0.75
        assert own.mean() > others.mean()


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_trains_the_same(world_size: int) -> None:
    wanted = trained({"optim.max_steps": 4})
    for found in run_world(world_size, trained, {"optim.max_steps": 4}):
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-5), name


def test_a_measurement_of_samples_does_not_read_the_retained_labels() -> None:
    def made(retain_samples: int) -> Check:
        config = run_config(**{**VAE, "evaluate.samples": 64, "evaluate.retain_samples": retain_samples})
        return check(replace(run_inputs(config), model=tiny_vae(dtype=torch.float32)), 2, final=False)

    few, many = made(1).metrics, made(50).metrics
    assert few["class_shares"] == many["class_shares"] and few["class_shares"]["n"] == 64
    assert few["forget_fraction"]["value"] == few["class_shares"]["per_class"]["1"]
    kept = made(1).retained(few, (1,))
    assert kept is not None and kept.value == 1.0  # its own mixture overlaps with itself


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"request.exchange": {1: 2}},
            r"request\.exchange: got \{1: 2\}, but vae-mnist samples without labels; expected none",
        ),
        ({"request.retain": "neighbours"}, r"request\.retain: got neighbours, .* expected all"),
        ({"method.contrast": True}, r"method\.contrast: got True"),
        ({"method.name": "esd"}, r"method\.name: got esd"),
        (
            {"method.targets": "teacher", "method.uniformity_weight": 0.0},
            r"method\.targets: with uno_s, no exchange class and targets teacher",
        ),
    ],
)
def test_what_is_about_labels_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(run_config(**{**VAE, **changes}), NAMES, conditional=False)


def test_without_labels_no_exchange_class_is_asked_for() -> None:
    assert str(resolve(run_config(**VAE), NAMES, conditional=False).request.id).startswith("digits-forget-1-")
    # the hat term drives it
    driven = resolve(run_config(**{**VAE, "method.targets": "teacher"}), NAMES, conditional=False)
    assert driven.method.targets == "teacher"


def test_settings_that_the_model_cannot_be_trained_with_are_refused() -> None:
    config = run_config(**VAE)
    require_fit(config, tiny_vae())
    with pytest.raises(
        InputError, match=r"method\.uniformity_weight: got 2 for vae-mnist, whose samples take many passes"
    ):
        require_fit(config, tiny_dit())
    folded = {**VAE, "method.latent_reflection": True, "method.uniformity_weight": 0.0}
    for changes, model, said in (
        (
            {"method.targets": "teacher"},
            tiny_dit(),
            r"method\.latent_reflection: got true for vae-mnist, which has no encoder",
        ),
        ({}, tiny_vae(), r"method\.latent_reflection: got targets data"),
        (
            {"method.targets": "teacher", "request": {"sample_ids": "ids.txt"}},
            tiny_vae(),
            r"method\.latent_reflection: named samples",
        ),
    ):
        with pytest.raises(InputError, match=said):
            require_fit(run_config(**{**folded, **changes}), model)
    batch = tiny_vae()
    batch.vae.normalise_by("batch")
    require_fit(config, batch)
    for cut, said in (
        ({"train.workers": 2}, "train.workers 2"),
        ({"optim.micro_batch": 4}, "optim.micro_batch 4"),
    ):
        with pytest.raises(InputError, match=rf"model\.batch_norm: got batch with {said}"):
            require_fit(run_config(**{**VAE, **cut}), batch)
    assert tiny_judge().num_classes == 4


def test_a_teachers_passes_leave_the_students_batch_statistics_alone() -> None:
    model = tiny_vae()
    model.vae.normalise_by("tracked")
    model.net.train()
    teacher = Teacher(model, select(model, "all"))
    before = {name: buffer.clone() for name, buffer in model.net.named_buffers()}
    x0 = torch.rand((4, *model.shape), dtype=torch.float64) * 2 - 1
    y, eps = torch.zeros(4, dtype=torch.long), torch.randn((4, *(model.latent or ())), dtype=torch.float64)
    rows = Rows(x0=x0, y=y, target_y=y, noise=Noise(t=y, eps=eps))
    first, second = teacher.targets(rows).value, teacher.targets(rows).value
    assert torch.equal(first, second)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.net.named_buffers())
