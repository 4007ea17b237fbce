"""Which keys a job has: those that do nothing are refused, those of one named thing are checked by its own
class, what a run left is read whatever it was written by."""

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import reading, renamed
from pipeline.config.benchmark import BenchmarkConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.export import ExportConfig
from pipeline.config.own_settings import check_own_settings
from pipeline.config.prepare import PrepareConfig
from pipeline.config.pretrain import PretrainConfig
from pipeline.config.reading import dump, load, parse, parse_given, parse_stored
from pipeline.config.sweep import SweepConfig
from pipeline.config.unlearn import UnlearnConfig
from pipeline.errors import InputError
from pipeline.runs.request_checks import with_own_settings
from pipeline.unlearning.methods.table import METHODS

QUICKSTART = "jobs/configs/quickstart.yaml"


@pytest.mark.parametrize(
    ("kind", "config", "override", "message"),
    [
        (
            UnlearnConfig,
            "quickstart",
            "evaluate.cpus=2",
            "evaluate.asynchronous is false, so it does nothing",
        ),
        (
            UnlearnConfig,
            "quickstart",
            "attacks.samples=50",
            "expected evaluate.attack_suite=true or quick, or no attacks",
        ),
        (
            UnlearnConfig,
            "quickstart",
            "measuring.samples=50",
            "evaluate.attack_suite is false and evaluate.metrics",
        ),
        (
            UnlearnConfig,
            "quickstart",
            "uniformity_judge.weights=x",
            "expected method.uniformity_weight above 0",
        ),
        (UnlearnConfig, "quickstart", "gate.max_membership_auc=0.5", "request.sample_ids is absent"),
        (UnlearnConfig, "quickstart", "gate.max_share_drift=0.1", "model.size is DiT-tiny"),
        (UnlearnConfig, "quickstart", "model.batch_norm=batch", "expected model.size a VAE"),
        (UnlearnConfig, "mnist_vae", "gate.min_retain_accuracy=0.9", "model.size is vae-mnist"),
        (UnlearnConfig, "mnist_vae", "evaluate.floor_patience=2", "evaluate.retention_floor is absent"),
        (UnlearnConfig, "quickstart", "train.resize_s=3", "expected train.workers=[fewest, most]"),
        (UnlearnConfig, "quickstart", "encoder.sha256=" + "0" * 64, "encoder.weights is absent"),
        (UnlearnConfig, "digits_weights", "method.hvp=recompute", "expected method.name=uno or uno_s, or no"),
        (UnlearnConfig, "mnist_vae", "method.null_fraction=0.2", "expected model.size a DiT"),
        (PretrainConfig, "pretrain_digits", "model.weights=x", "valid keys of model are size"),
        (PretrainConfig, "pretrain_digits", "train.memory_gib=8", "valid keys of train are workers"),
        (PretrainConfig, "pretrain_digits", "evaluate.every=3", "valid keys of evaluate are retain_samples"),
        (PretrainConfig, "pretrain_digits", "judge={net: mlp, width: 8}", "judge.net is mlp"),
        (
            PretrainConfig,
            "pretrain_digits",
            "uniformity_judge.mirrored=true",
            "valid keys of uniformity_judge are net, width",
        ),
        (PrepareConfig, "prepare_digits", "seed=3", "unknown key 'seed'"),
        (PrepareConfig, "prepare_digits", "encoder.batch=3", "expected encoder.kind=autoencoder_kl"),
        (EvaluateConfig, "evaluate_digits", "attacks.samples=50", "expected attack_suite=true"),
        (
            EvaluateConfig,
            "evaluate_digits",
            "tracking.experiment=x",
            "valid keys of tracking are uri, model_name",
        ),
        (
            EvaluateConfig,
            "evaluate_digits",
            "features.dinov2={weights: a, size: 3}",
            "keys of features.dinov2 are",
        ),
        (ExportConfig, "export_imagenet", "size=DiT-S/2", "expected weights=..."),
        (BenchmarkConfig, "benchmark_step", "scaling.rounds=3", "expected benchmark=scaling"),
        (BenchmarkConfig, "benchmark_sweep", "threads=2", "benchmark is sweep"),
        (SweepConfig, "sweep_quickstart", "scheduler.reduction=4", "expected scheduler.kind=asha"),
        (
            SweepConfig,
            "sweep_quickstart",
            "space.optim={lr: {uniform: [1, 2]}}",
            "keys of space.optim are loguniform",
        ),
    ],
)
def test_a_key_that_does_nothing_is_refused(kind: Any, config: str, override: str, message: str) -> None:
    path = f"jobs/configs/{config}.yaml"
    load(kind, path)
    with pytest.raises(InputError) as caught:
        load(kind, path, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_method_reads_of_the_settings_that_all_share_is_what_the_table_says() -> None:
    def accepts(**method: Any) -> bool:
        try:
            parse_given(UnlearnConfig, {"method": method})
        except InputError as error:
            assert "so it does nothing" in str(error)
            return False
        return True

    for name, method in METHODS.items():
        assert accepts(name=name, hvp="recompute") == method.second_order, name
        assert accepts(name=name, targets="data", null_fraction=0.2) == method.teacher, name
        assert accepts(name=name, targets="teacher", null_fraction=0.2), name
    with pytest.raises(InputError, match=r"expected method\.targets=teacher or method\.name=esd, or no"):
        parse_given(UnlearnConfig, {"method": {"targets": "data", "null_fraction": 0.2}})


def test_a_file_may_hold_what_only_works_with_the_switch_that_set_turns_off(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("evaluate: {asynchronous: true, cpus: 2}\n")
    assert load(UnlearnConfig, str(path)).evaluate.cpus == 2
    load(UnlearnConfig, str(path), ["evaluate.asynchronous=false"])
    with pytest.raises(InputError, match=r"evaluate\.cpus"):
        load(UnlearnConfig, str(path), ["evaluate.asynchronous=false", "evaluate.cpus=1"])
    path.write_text("evaluate: {cpus: 2}\n")
    with pytest.raises(InputError, match=r"evaluate\.cpus"):
        load(UnlearnConfig, str(path))


def test_what_is_dumped_is_what_is_read_and_does_something() -> None:
    config = with_own_settings(load(UnlearnConfig, QUICKSTART))
    values = yaml.safe_load(dump(config))
    assert "attacks" not in values and "cpus" not in values["evaluate"]
    assert values["method"]["penalty"] == 0.01 and values["method"]["surgery_every"] == 2
    assert parse_given(UnlearnConfig, values) == config
    assert with_own_settings(parse_stored(UnlearnConfig, values)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "method.saliency=0.3",
            "method.saliency: uno_s does not have it; its settings are penalty, surgery_every",
        ),
        ("method.penalti=1", "unknown key 'method.penalti': did you mean penalty"),
        ("method.penalty=-1", "method.penalty: got -1, input should be greater than or equal to 0"),
        ("method.name=magic", "method.name: got 'magic', expected one of finetune, exchange"),
        (
            "method={name: exchange, penalty: 1}",
            "method.penalty: exchange does not have it; it has no settings",
        ),
    ],
)
def test_a_setting_that_the_method_does_not_have_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        with_own_settings(load(UnlearnConfig, QUICKSTART, [override]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_another_method_by_set_takes_what_it_has_of_the_files_settings() -> None:
    def own(*overrides: str) -> dict[str, Any]:
        return with_own_settings(load(UnlearnConfig, QUICKSTART, list(overrides))).method.own

    assert own("method.name=uno") == {"penalty": 0.01}
    assert own("method.name=exchange") == {}
    assert own("method.name=sfr_on", "method.alpha=2")["alpha"] == 2.0
    with pytest.raises(InputError, match=r"method\.penalty: exchange does not have it"):
        own("method.name=exchange", "method.penalty=1")


def test_own_settings_are_explained_in_the_words_of_all_others() -> None:
    class Inner(BaseModel):
        model_config = ConfigDict(extra="forbid")
        depth: int = Field(1, ge=1)

    class Own(BaseModel):
        model_config = ConfigDict(extra="forbid")
        size: int = Field(ge=1, description="how many")
        kind: Literal["a", "b"] = "a"
        inner: dict[str, Inner] = {}

    assert check_own_settings("measuring.toy", {"size": 3}, Own) == Own(size=3)
    for values, message in (
        ({"size": 0}, "measuring.toy.size: got 0, input should be greater than or equal to 1"),
        ({}, "measuring.toy.size: got none, expected how many: --set measuring.toy.size=<value>"),
        (
            {"size": 1, "kid": "a"},
            "unknown key 'measuring.toy.kid': did you mean kind? valid keys of measuring.toy",
        ),
        ({"size": 1, "inner": {"x": {"deep": 1}}}, "valid keys of measuring.toy.inner.x are depth"),
    ):
        with pytest.raises(InputError) as caught:
            check_own_settings("measuring.toy", values, Own)
        assert message in str(caught.value)


def test_what_an_older_version_wrote_is_read() -> None:
    config = with_own_settings(load(UnlearnConfig, QUICKSTART))
    values = config.model_dump(mode="json")  # every default, whether it does something or not
    values["method"] |= {"eta": 3.0, "saliency": 0.5}  # of all methods
    values |= {"autopilot": {"steps": 12}, "gone": 1}
    values["evaluate"]["went"] = [2]
    stored = with_own_settings(parse_stored(UnlearnConfig, values))
    assert stored == config and dump(stored) == dump(config)
    values["optim"]["lr"] = "fast"
    with pytest.raises(InputError, match=r"optim\.lr: got 'fast'"):
        parse_stored(UnlearnConfig, values)


def test_renamed_keys_are_refused_with_the_new_name_and_read_from_what_runs_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        renamed,
        "RENAMED",
        {"optim.speed": "optim.lr", "method.pull": "method.label_extrapolation", "judge": "x"},
    )
    for given in ({"optim": {"speed": 1}}, {"method": {"pull": 1.0}}):
        message = r"is called (optim\.lr|method\.label_extrapolation) now; expected --set \1=\.\.\."
        with pytest.raises(InputError, match=message):
            parse(UnlearnConfig, given)
    with pytest.raises(InputError, match=r"optim\.speed: is called optim\.lr now"):
        load(UnlearnConfig, QUICKSTART, ["optim.speed=1"])
    # a key of this job, whatever it is called in another
    assert parse(UnlearnConfig, {"judge": {"weights": "a"}}).judge.weights == "a"
    stored = parse_stored(UnlearnConfig, {"optim": {"speed": 0.5}, "method": {"name": "uno", "pull": 2.0}})
    assert (stored.optim.lr, stored.method.label_extrapolation, stored.method.own) == (0.5, 2.0, {})


def test_renamed_keys_inside_comparisons_and_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.config.compare import CompareConfig
    from pipeline.studies.grid import cells
    from pipeline.sweep.space import base_config, check_space

    monkeypatch.setattr(renamed, "RENAMED", {"optim.speed": "optim.lr"})
    grid = {"train": {"workers": 1}}
    for unlearn, row in (
        ({"optim": {"speed": 1}}, {}),
        ({}, {"optim.speed": 1}),
        ({}, {"optim": {"speed": 1}}),
    ):
        with pytest.raises(InputError, match=r"optim\.speed: is called optim\.lr now"):
            cells(parse(CompareConfig, {"unlearn": grid | unlearn, "rows": {"one": row}}))
    with pytest.raises(InputError, match=r"optim\.speed: is called optim\.lr now"):
        base_config(load(SweepConfig, "jobs/configs/sweep_quickstart.yaml", ["set.optim.speed=1"]))
    sweep = load(
        SweepConfig, "jobs/configs/sweep_quickstart.yaml", ["space={optim.speed: {uniform: [0.1, 1]}}"]
    )
    with pytest.raises(InputError, match=r"space: optim\.speed: is called optim\.lr now"):
        check_space(sweep.space, base_config(sweep))


def test_every_key_is_described() -> None:
    def undescribed(kind: type[BaseModel], prefix: str = "") -> list[str]:
        missing = []
        for name, field in kind.model_fields.items():
            inner = reading.section_of(field.annotation)
            if inner is not None:
                missing += undescribed(inner, f"{prefix}{name}.")
            elif not field.description:
                missing.append(prefix + name)
        return missing

    kinds = (
        UnlearnConfig,
        PretrainConfig,
        PrepareConfig,
        EvaluateConfig,
        ExportConfig,
        BenchmarkConfig,
        SweepConfig,
    )
    assert {kind.__name__: keys for kind in kinds if (keys := undescribed(kind))} == {}


def test_classes_of_named_samples_are_read_from_where_they_were_before() -> None:
    """With named samples, `classes` once said where they are; a run of then forgot no class whole."""
    before = {"classes": [2], "sample_ids": "ids.txt", "exchange": {}}
    request = parse_stored(UnlearnConfig, {"request": before}).request
    assert (request.classes, request.sample_classes, request.sample_ids) == ([], [2], "ids.txt")
    now = {"classes": [1], "exchange": {1: 7}, "sample_ids": "ids.txt", "sample_classes": []}
    assert parse_stored(UnlearnConfig, {"request": now}).request.classes == [1]
    for stored in (request, parse_stored(UnlearnConfig, {"request": now}).request):
        config = UnlearnConfig(request=stored)
        again = parse_stored(UnlearnConfig, yaml.safe_load(dump(config)))
        assert again.request == config.request, "what is written today is read as it is"


@pytest.mark.parametrize("given", ["4711", "2026-11-28", "a.b-c"])
def test_a_ticket_number_is_a_text(given: str) -> None:
    assert load(UnlearnConfig, QUICKSTART, [f"request.id={given}"]).request.id == given


@pytest.mark.parametrize("key", ["request.id", "run_id", "tracking.model_name", "lake"])
@pytest.mark.parametrize("given", ["'a b'", "..", ".hidden", '"it\'s"', "x" * 101, "''"])
def test_what_is_no_name_is_refused(key: str, given: str) -> None:
    with pytest.raises(InputError, match=rf"{key}: got"):
        load(UnlearnConfig, QUICKSTART, [f"{key}={given}"])


@pytest.mark.parametrize("given", ["1.10", "yes"])
def test_what_yaml_reads_as_another_number_is_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"request\.id: got"):
        load(UnlearnConfig, QUICKSTART, [f"request.id={given}"])


@pytest.mark.parametrize("section", ["step", "scaling"])
def test_tokens_of_a_benchmark_are_a_square(section: str) -> None:
    from pipeline.config import BenchmarkConfig

    with pytest.raises(
        InputError, match=rf"{section}\.tokens: got 5 tokens, expected a square number such as 4"
    ):
        parse(BenchmarkConfig, {"benchmark": section, section: {"tokens": 5}})
