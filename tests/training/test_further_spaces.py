"""A run with a further feature space: read and checked, kept where workers find it, measured before and
after, named in the result."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from runs import run_config, run_inputs
from tiny import tiny_batch
from untrained import fill

from pipeline.config import UnlearnConfig, load
from pipeline.data.partition_ray import build_partition
from pipeline.evaluation.feature_statistics import Moments
from pipeline.runs import preflight
from pipeline.training.periodic_eval import check
from pipeline.training.worker_inputs import Sources, assemble
from pipeline.unlearning.collectives import Collectives
from pipeline.weights import feature_extractors

ROOT = Path(__file__).resolve().parents[2]
FEW = [
    "evaluate.final_samples=100",
    "evaluate.final_retain_samples=2",
    "evaluate.final_sampler_steps=1",
    "evaluate.retain_samples=1",
]


class Means(torch.nn.Module):
    """Colour means of the quarters of an image: 12 features."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(img.float(), [2, 2]).flatten(1)


class Pixels:
    """The image itself, as a feature space."""

    def __init__(self) -> None:
        self.net: torch.nn.Module = torch.nn.Identity()
        self.feature_size = 16

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().flatten(1)


def test_a_run_takes_them_before_and_after_and_not_at_every_check() -> None:
    def at(final: bool, **changes: Any) -> dict[str, float]:
        inputs, pixels = run_inputs(run_config(**changes)), Pixels()
        features = pixels.features(tiny_batch([0, 2, 3], each=10).mean)
        real = {**(inputs.subject.real or {}), "pixels/real/moments/all": Moments.of(features).packed()}
        subject = replace(inputs.subject, spaces={"pixels": pixels}, real=real)
        return dict(check(replace(inputs, subject=subject), 2, final=final).metrics["fid"])

    final, on_the_way = at(True), at(False)
    assert final.keys() == {"judge", "pixels"} and on_the_way.keys() == {"judge"}
    assert abs(at(True, **{"evaluate.batch": 5})["pixels"] - final["pixels"]) < 1e-5
    rough = at(True, **{"evaluate.precision": "bf16"})
    assert rough["judge"] != final["judge"] and abs(rough["judge"] / final["judge"] - 1) < 0.2


def test_a_run_measures_in_the_space_it_was_given(tmp_path: Path) -> None:
    root, file = str(tmp_path / "root"), tmp_path / "inception.pt"
    fill(root)
    torch.jit.save(torch.jit.script(Means()), str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    given = [f"features.inception.weights={file}", f"features.inception.sha256={digest}"]
    config = load(
        UnlearnConfig,
        str(ROOT / "jobs/configs/quickstart.yaml"),
        [f"storage={root}", "train.workers=1", *FEW, *given],
    )
    prepared = preflight.check(config)
    kept = feature_extractors.kept(prepared.features, root)
    file.unlink()  # from here on the kept copy serves
    partition = build_partition(prepared.config, prepared.lake, prepared.subject["neighbours"])
    inputs = assemble(
        prepared.config,
        partition,
        Sources(**prepared.sources | {"subject": prepared.subject | {"features": kept}}),
        collectives=Collectives(),
        device=torch.device("cpu"),
    )
    final, on_the_way = (check(inputs, 0, final=last) for last in (True, False))
    assert final.metrics["fid"].keys() == {"judge", "inception"} and final.metrics["fid"]["inception"] > 0
    assert on_the_way.metrics["fid"].keys() == {"judge"}
    facts = feature_extractors.facts(prepared.features, prepared.judge)
    assert facts["inception"]["weights"] == str(file) and facts["judge"]["digest"] == prepared.judge.digest
