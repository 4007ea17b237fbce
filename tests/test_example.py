"""What the pages say of the code: the Python example runs as it stands, the walks name what is there."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from models.generative import build, dit_description
from models.judge import build_judge, small_cnn_description
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest_ray
from pipeline.training.pretrain import judge_accuracy, train_dit, train_judge
from pipeline.unlearning.collectives import Collectives
from pipeline.weights import model_folder

ROOT = Path(__file__).resolve().parents[1]
WALKS = re.split(r"(?m)^### ", (ROOT / "docs" / "concepts.md").read_text())[1:]
NAMES = [str(label) for label in range(10)]
FIT: dict[str, Any] = {
    "seed": 0,
    "batch_size": 128,
    "device": torch.device("cpu"),
    "collectives": Collectives(),
    "lr": 3e-3,
    "warmup_steps": 50,
    "clip": 1.0,
    "weight_decay": 0.0,
    "progress": lambda step, loss: None,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage root with the digits lake, a DiT-tiny that samples its classes, a judge that knows them."""
    root = str(tmp_path_factory.mktemp("runs"))
    config = parse(PrepareConfig, {"storage": root, "prepare": {"size": 8, "channels": 1}})
    lake = ingest_ray.prepare(config, run=lambda tasks: map(ingest_ray.make_shard, tasks)).lake
    rows, heldout = lake.read(list(range(10))), lake.read(list(range(10)), "heldout")
    described = small_cnn_description(shape=(1, 8, 8), num_classes=10, class_names=NAMES)
    judge = build_judge(described)
    train_judge(judge, rows, noise=0.3, steps=150, ema=0.98, **FIT)
    accuracy = judge_accuracy(judge, heldout, device=FIT["device"])
    model_folder.write(
        model_folder.judge_uri(root, "digits"),
        described,
        judge.net.state_dict(),
        {"heldout_accuracy": accuracy},
    )
    description = dit_description("DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=NAMES)
    model = build(description)
    train_dit(model, rows, label_dropout=0.1, steps=600, ema=0.99, **FIT)
    model_folder.write(
        model_folder.model_uri(root, "DiT-tiny", "digits"), description, model.net.state_dict(), {}
    )
    return root


@pytest.mark.e2e
def test_the_example_forgets_a_digit_without_ray(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert block.count('"storage=runs"') == 1
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(
        compile(block.replace('"storage=runs"', repr(f"storage={trained}")), "docs/python.md", "exec"), names
    )
    before: Mapping[str, Any] = names["run"].result["before"]
    after: Mapping[str, Any] = names["run"].result["after"]
    assert before["forget_fraction"]["value"] > 0.8
    assert after["forget_fraction"]["value"] < 0.1
    assert after["retain_accuracy"]["mean"] > before["retain_accuracy"]["mean"] - 0.05
    assert names["images"].shape == (8, 1, 8, 8)
    assert (names["predictions"] == 1).sum() <= 1


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.split(":")[0])
def test_a_walk_is_at_most_twelve_files_each_once_with_what_it_names(walk: str) -> None:
    hops = re.findall(r"(?m)^\d+\. `([\w/.-]+)`(?:, `([\w.]+)`)?", walk)
    files = [file for file, _ in hops]
    assert 1 < len(files) <= 12 and len(set(files)) == len(files)
    assert set(re.findall(r"\b(?:models|pipeline|jobs)/[\w/.-]+\.(?:py|yaml)", walk)) == set(files)
    for file, name in hops:
        text = (ROOT / file).read_text()
        for part in filter(None, name.split(".")):
            assert re.search(rf"(?m)^\s*(?:def |class )?{part}\b", text), f"{file} has no {name}"
