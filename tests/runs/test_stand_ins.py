"""Samples of the base in the place of purged rows: drawn by seed, read as rows to forget, said afterwards."""

from pathlib import Path
from typing import Any

import pytest
from untrained import fill

from pipeline import storage
from pipeline.config import UnlearnConfig, load
from pipeline.data import tombstones
from pipeline.data.partition_ray import build_partition
from pipeline.data.stand_ins import MARK
from pipeline.errors import InputError
from pipeline.governance.purge_reach import scope_of
from pipeline.reports.run_report import render_report
from pipeline.reports.terminal import summary
from pipeline.runs import local, preflight

ROOT = Path(__file__).resolve().parents[2]
FEW = [
    *("evaluate.samples=20", "evaluate.retain_samples=1", "evaluate.sampler_steps=1", "optim.max_steps=2"),
    *("evaluate.final_samples=100", "evaluate.final_retain_samples=1", "evaluate.final_null_samples=10"),
    *("evaluate.final_sampler_steps=1", "train.workers=1"),
]
BOTH = ["request.classes=[1,3]", "request.exchange={1: 7, 3: 5}"]
SAMPLED = [*BOTH, "request.stood_in=[1]", "request.stand_in_samples=30"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The rows of class 1 were purged."""
    root = str(tmp_path_factory.mktemp("purged"))
    fill(root)
    lake = tombstones.open_lake(root, "digits")
    ids = [*lake.read([1]).sample_id, *lake.read([1], "heldout").sample_id]
    tombstones.bury(root, "r1", ids, labels=[1])
    return root


def config_of(root: str, *more: str) -> UnlearnConfig:
    quick = str(ROOT / "jobs/configs/quickstart.yaml")
    return load(UnlearnConfig, quick, [f"storage={root}", "request.id=r3", *FEW, *more])


def drawn(root: str, *more: str) -> Any:
    prepared = preflight.check(config_of(root, *SAMPLED, *more))
    return build_partition(prepared.config, prepared.lake, prepared.subject["neighbours"], prepared.stand_ins)


def test_a_run_reads_them_and_says_so(root: str) -> None:
    run = local.unlearn(config_of(root, "run_id=sampled", *SAMPLED))
    facts = run.result["stand_ins"]
    assert facts["samples"] == {"1": 30} and facts["weights_digest"] == run.result["base_digest"]
    assert set(run.result["after"]["forget_fraction"]["per_class"]) == {"1", "3"}, "measured as ever"
    published = run.result | {"model": {"name": "m", "version": 2, "alias": "candidate"}}
    sentence = "purged rows of class 1 were stood in for by 30 samples of the base under its old label"
    assert f"The {sentence}" in render_report(published, [], {}, "", class_names=None)
    assert f"the {sentence}" in summary(published, "report.html")
    part = drawn(root)
    assert part.digest == run.result["partition_digest"]
    batch = part.forget()
    names = [name for name in batch.sample_id if name.endswith(MARK)]
    assert len(names) == 30 and {1, 3} == set(batch.y.tolist()) and float(batch.mean.abs().max()) <= 1
    assert [file.label for file in part.forgotten_images] == [3], "nobody's images are not among them"
    _, ids = scope_of(root, "r3", [], [part])
    assert ids and not ids & set(names), "and no purge buries their names"


def test_the_same_at_any_number_of_workers(root: str, tmp_path: Path) -> None:
    first = drawn(root)
    storage.remove(first.uri)
    again = drawn(root, "train.workers=4", "train.cpus_per_worker=0.1")
    assert (again.digest, again.manifest.stand_ins) == (first.digest, first.manifest.stand_ins)
    other = drawn(root, "seed=1")
    assert other.digest != first.digest and other.manifest.stand_ins != first.manifest.stand_ins


def test_from_other_weights_than_the_base_of_the_run(root: str) -> None:
    """As where a run starts from a version that does not sample the class any more."""
    base = f"{root}/models/dit-tiny-digits"
    later = ["request.classes=[3]", "request.exchange={1: 7, 3: 5}", "request.forgotten_earlier=[1]"]
    prepared = preflight.check(
        config_of(root, *later, "request.stood_in=[1]", f"request.stand_in_weights={base}")
    )
    assert prepared.stand_ins is not None and prepared.stand_ins.labels == (1,)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (BOTH, r"request\.classes: class 1 has no training images .* \(146 were purged\)"),
        ([*BOTH, "request.stood_in=[3]"], "the rows of class 3 are in lake .* nothing to stand in for"),
        ([*BOTH[:0], "request.stood_in=[4]"], "class 4 is neither in request.classes nor in"),
        (
            ["request.classes=[3]", "request.exchange={3: 5}", "request.forgotten_earlier=[1]", SAMPLED[2]],
            "stand_in_weights: got none, but what the run starts from does not sample class 1 any more",
        ),
        ([*SAMPLED, "request.stand_in_weights=/nowhere"], r"request\.stand_in_weights: no weights at"),
        ([*BOTH, "request.stand_in_samples=30"], "request.stand_in_samples: got it while .* is absent"),
    ],
)
def test_refused_in_one_line(root: str, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        preflight.check(config_of(root, "run_id=refused", *more))
    assert "\n" not in str(caught.value) and not storage.exists(storage.join(root, "runs", "refused"))
