"""The whole ImageNet job in small, as a user runs it: JPEGs -> latents -> lake in a bucket -> two workers ->
judge -> gate -> registered
-> a DiTPipeline folder that samples. Nothing was learned: the gate has to fail, and to say why."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_servers
import stand_ins

from pipeline import storage

pytestmark = [pytest.mark.e2e, pytest.mark.ray]
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_servers.serving(tmp_path_factory.mktemp("s3")) as server, s3_servers.environment(server.port):
        yield "s3://bucket/runs"


@pytest.fixture(scope="module")
def finished(
    job: Callable[..., Any], bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, str]:
    """The run's folder, what the job said, and the tracking database."""
    database = f"tracking.uri=sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    real = os.environ.get("UNLEARN_TEST_DATA")
    places = stand_ins.fill(bucket, f"{real}/imagenet-sample" if real else None)
    published = [f"{key}={place}" for key, place in places.items()]
    said = job(
        "unlearn_imagenet", "imagenet_smoke", f"storage={bucket}", "run_id=smoke", database, *published
    )
    assert said.code == 0, said.err
    return f"{bucket}/runs/smoke", said, database


def test_the_configuration_alone_finds_the_same_weights(
    finished: tuple[str, Any, str], here: Callable[..., Any], bucket: str
) -> None:
    run_uri, _, database = finished
    again = here("unlearn_imagenet", "imagenet_smoke", f"storage={bucket}", database, dry_run=True)
    assert again.code == 0 and "the lake and the weights fit together" in again.out, again.err
    manifest = storage.read_json(f"{bucket}/models/dit-nano-imagenet-smoke/manifest.json")
    assert manifest["weights_digest"] == storage.read_json(f"{run_uri}/result.json")["base_digest"]


def test_the_gate_fails_and_says_why(finished: tuple[str, Any, str]) -> None:
    run_uri, said, _ = finished
    result = storage.read_json(f"{run_uri}/result.json")
    failed = {check["name"] for check in result["gate"]["checks"] if not check["passed"]}
    assert (
        result["gate"]["passed"] is False
        and {"retain_accuracy/mean", "settled", "judge_heldout_accuracy"} <= failed
    )
    assert "retain_accuracy/mean" in said.out and re.search(r"gate", said.out)
    assert result["world_size"] == 2 and result["method_config"]["hvp"] == "exact"
    assert result["before"]["retain_accuracy"]["mean"] is not None and "judge" in result["after"]["fid"]


def test_every_artifact_is_in_order(finished: tuple[str, Any, str], bucket: str) -> None:
    run_uri, _, _ = finished
    there = storage.walk(run_uri)
    for name in (
        "config.yaml",
        "request.yaml",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "model/model.safetensors",
    ):
        assert name in there, there
    assert any(name.startswith("samples/after-00207") for name in there)
    manifest = storage.read_json(f"{bucket}/lakes/imagenet-smoke/manifest.json")
    assert (
        manifest["kind"] == "latent" and manifest["shape"] == [4, 4, 4] and len(manifest["classes"]) == 1000
    )
    assert manifest["encoder"]["scale"] == 0.18215


def test_the_registered_version_and_the_pipeline_draw(
    finished: tuple[str, Any, str], here: Callable[..., Any], bucket: str, tmp_path: Path
) -> None:
    run_uri, _, database = finished
    for name in storage.walk(f"{run_uri}/pipeline"):
        storage.download(f"{run_uri}/pipeline/{name}", tmp_path / "pipeline" / name)
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "pipeline", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        pipeline.get_label_ids(["golden_retriever"]), num_inference_steps=2, output_type="np"
    ).images
    assert images.shape == (1, 32, 32, 3) and images.std() > 0
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "DiTPipeline" and len(index["id2label"]) == 1000
    png = tmp_path / "drawn.png"
    drawn = here(
        "generate",
        "generate_digits",
        f"storage={bucket}",
        database,
        "tracking.model_name=dit-imagenet-smoke-unlearned",
        "labels=[207, 208]",
        "seeds=[0, 1]",
        "steps=2",
        f"output={png}",
    )
    assert drawn.code == 0, drawn.err
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_model_of_latents_is_measured_and_attacked_like_any_other(
    finished: tuple[str, Any, str], here: Callable[..., Any], bucket: str, tmp_path: Path
) -> None:
    _, _, database = finished
    output = tmp_path / "measured.json"
    few = (
        "{samples: 20, retain_samples: 2, null_samples: 4, cfg_scales: [], sampler_steps: 1, block: 250,"
        " reference_rows: 20, attacker_images: train}"
    )
    tries = (
        "{samples: 20, retain_samples: 1, finetune_steps: 1, embedding_steps: 1, embedding_lr: 0.05,"
        " embedding_starts: [mean], lora: {steps: 1, lr: 1.0e-4}, only: [none, finetune, embedding, lora]}"
    )
    measured = here(
        "evaluate",
        "evaluate_digits",
        f"storage={bucket}",
        database,
        "version=smoke",
        "checkpoint=last",
        "metrics=[forget_fraction, fid, kid, paired_drift]",
        "attack_suite=true",
        f"measuring={few}",
        f"attacks={tries}",
        f"output={output}",
    )
    assert measured.code == 0, measured.err
    found = json.loads(output.read_text())
    assert found["base_digest"] and found["after"]["forget_fraction"]["n"] == 20
    assert found["before"]["fid"]["judge"] > 0
    assert found["after"]["paired_drift"]["judge"]["n"] == 2 * 999
    assert {line["state"] for line in found["attack_suite"]["attacks"]} <= {"holds", "open"}, found[
        "attack_suite"
    ]


def test_the_board_compares_settings_on_published_weights(
    bucket: str, finished: tuple[str, Any, str], here: Callable[..., Any]
) -> None:
    """Weights, judge and decoder as they are published, each row decoded before anything looks at it."""
    places = {place: f"{bucket}/stand-ins/{place}" for place in ("dit.pt", "vae", "judge")}
    few = (
        "{every: 2, samples: 20, retain_classes: 20, rotation: 20, retain_samples: 1, final_samples: 100,"
        " final_retain_samples: 1, sampler_steps: 1, final_sampler_steps: 1, to_the_end: true}"
    )
    compared = here(
        "compare_methods",
        "compare_board_imagenet",
        f"storage={bucket}",
        "lake=imagenet-smoke",
        "seeds=[0]",
        "pairs=[[207, 208]]",
        "unlearn.model.size=DiT-nano",
        f"unlearn.model.weights={places['dit.pt']}",
        f"unlearn.encoder.weights={places['vae']}",
        f"unlearn.judge.weights={places['judge']}",
        "unlearn.trainable=labels_and_adaln:1",
        f"unlearn.{finished[2]}",
        "unlearn.train={workers: 1}",
        "unlearn.optim={batch_size: 16, max_steps: 2}",
        f"unlearn.evaluate={few}",
        "rows={weights: {method.depth: weights, method.name: exchange, trainable: all}}",
    )
    assert compared.code == 0, compared.err
    (line,) = storage.read_bytes(f"{bucket}/comparisons/board-imagenet.jsonl").decode().splitlines()
    result = json.loads(line)
    assert result["steps"] == 2 and result["losses"]["retained"] and "kid" in result
    assert "without class 207" in compared.out and storage.exists(f"{bucket}/comparisons/board-imagenet.html")
