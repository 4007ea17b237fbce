"""What the pages say of the code: examples run as they stand there, the walks name what is there."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from models.generative import build, dit_description
from models.judge import build_judge, small_cnn_description
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest_ray
from pipeline.data.batch import Batch
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
    result: Mapping[str, Any] = names["run"].result
    before, after = result["before"], result["after"]
    assert before["forget_fraction"]["value"] > 0.8
    assert after["forget_fraction"]["value"] < 0.1
    assert after["retain_accuracy"]["mean"] > before["retain_accuracy"]["mean"] - 0.05
    assert names["images"].shape == (8, 1, 8, 8)
    stored = model_folder.read(model_folder.judge_uri(trained, "digits"), "judge.weights")
    judge = build_judge(stored.config)
    judge.net.load_state_dict(dict(stored.state))
    with torch.no_grad():
        assert (judge.logits(names["images"]).argmax(1) == 1).sum() <= 1


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


def blocks(section: str) -> list[str]:
    """The Python of a section of docs/extending.md: the file to add, then its table line."""
    (text,) = re.findall(rf"(?ms)^## {section}\n(.*?)(?=^## )", (ROOT / "docs" / "extending.md").read_text())
    return re.findall(r"(?s)```python\n(.*?)```", text)


def added(section: str, **names: Any) -> dict[str, Any]:
    """The line of the table, with what the file defines."""
    file, line = blocks(section)
    exec(compile(file, f"docs/extending.md, {section}", "exec"), names)
    return dict(eval("{" + line + "}", names))


def test_the_method_of_the_page_bounds_its_ascent() -> None:
    from pipeline.unlearning.methods.table import Method

    table = added("A method", Method=Method)
    method = table["bounded_ascent"]
    g_f, g_r = torch.tensor([0.0, 3.0]), torch.tensor([2.0, 0.0])
    named = {"forget": g_f, "keep": g_r}
    gradients = SimpleNamespace(of=lambda *names: [named[name] for name in names], norm=torch.Tensor.norm)
    gradient = method.gradient(gradients, method.settings(share=0.5))
    assert torch.equal(gradient, torch.tensor([2.0, -1.0]))


def test_the_metric_of_the_page_counts_first_guesses() -> None:
    from pipeline.evaluation.metrics.table import Metric

    metric = added("A metric", Metric=Metric)["first_guesses"]
    spec = SimpleNamespace(forgotten_group="forgotten@2", own={"first_guesses": metric.settings(first=2)})
    predictions = torch.tensor(
        [[1, 7, 1, 3], [1, 7, 3, 1], [1, 1, 7, 3], [1, 3, 7, 9]]
    )  # label, then guesses
    share = metric.result(spec, {"after/forgotten@2/predictions": predictions}, "after")
    assert (share["value"], share["n"]) == (0.5, 4)


def test_the_attack_of_the_page_is_tried_on_a_copy() -> None:
    from pipeline.config.measuring import Attacks, Measuring
    from pipeline.evaluation.attacks.table import Attack
    from pipeline.evaluation.context import EvalContext, EvalSpec

    attack = added("An attack", Attack=Attack)["noise"]
    (attempt,) = attack.attempts(Attacks(), Measuring(), attack.settings(share=0.1))
    model = build(dit_description("DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=NAMES))
    spec = EvalSpec(
        forgotten=(1,),
        exchange={},
        retained=(0,),
        neighbours=(),
        null_label=10,
        timesteps=1000,
        num_classes=10,
    )
    judge = build_judge(small_cnn_description(shape=(1, 8, 8), num_classes=10, class_names=NAMES))
    before = {name: weight.clone() for name, weight in model.net.state_dict().items()}
    attacked = attempt.change(
        EvalContext(model=model, judge=judge, spec=spec, rows=lambda labels, split: pytest.fail("not read"))
    )
    table, noisy = (
        one.net.get_parameter("y_embedder.embedding_table.weight") for one in (model, attacked.model)
    )
    assert (noisy - table).std().item() == pytest.approx(0.1 * table.std().item(), rel=0.1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.net.state_dict().items())


def test_the_source_of_the_page_makes_a_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.data import sources

    table = added("A source", Kind=sources.Kind)
    monkeypatch.setattr(sources, "SOURCES", sources.SOURCES | table)
    for index in range(4):
        Image.new("L", (8, 8), 60 * index).save(tmp_path / f"{index}.png")
    rows = [f"{index}.png,{'dark' if index < 2 else 'light'}" for index in range(4)]
    (tmp_path / "images.csv").write_text("\n".join(["path,class", *rows]))
    config = parse(
        PrepareConfig,
        {
            "storage": str(tmp_path / "runs"),
            "source": {"kind": "csv", "uri": str(tmp_path / "images.csv"), "held_out": 0.0},
            "prepare": {"size": 8, "channels": 1},
        },
    )
    lake = ingest_ray.prepare(config, run=lambda tasks: map(ingest_ray.make_shard, tasks)).lake
    assert [(item.name, item.train_rows) for item in lake.manifest.classes] == [("dark", 2), ("light", 2)]


def test_the_family_of_the_page_learns_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    from models import generative

    names: dict[str, Any] = {}
    exec(compile(blocks("A model family")[0], "docs/extending.md", "exec"), names)
    monkeypatch.setitem(generative.FAMILIES, "flow", names["FlowModel"])
    model = build(generative.describe("Flow-tiny", shape=(1, 8, 8), class_names=NAMES))
    losses: list[float] = []
    fit = FIT | {"progress": lambda step, loss: losses.append(loss), "warmup_steps": 5, "batch_size": 16}
    rows = Batch.of(
        sample_id=tuple(NAMES),
        occurrence=(0,) * 10,
        y=torch.arange(10),
        mean=torch.linspace(-1, 1, 10).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(),
    )
    train_dit(model, rows, label_dropout=0.1, steps=40, ema=0.5, **fit)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        images = model.sample(labels=torch.arange(4), seeds=range(4), cfg_scale=1.0, steps=3)
    assert images.shape == (4, 1, 8, 8)
