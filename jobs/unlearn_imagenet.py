"""The main job: request -> partition -> unlearn on Ray Train workers -> evaluate -> gate -> register.

python jobs/unlearn_imagenet.py --config jobs/configs/quickstart.yaml
python jobs/unlearn_imagenet.py --config ... --set 'request.classes=[3]' --set 'request.exchange={3: 5}'
UNLEARN_STORAGE=s3://bucket/unlearning python jobs/unlearn_imagenet.py   # jobs/configs/imagenet.yaml

With --require-gate it ends with exit code 4 where the result fails its gate; without, with 0.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.errors import InputError
from pipeline.runtime import command_line
from pipeline.runtime.command_line import GATE_FAILED

CONFIG = "jobs/configs/imagenet.yaml"  # where none is given

if TYPE_CHECKING:
    from pipeline.weights.model_folder import Stored


def run(config: UnlearnConfig, dry_run: bool) -> int:
    from pipeline.reports.terminal import summary
    from pipeline.runs import preflight, run_weights, unlearn
    from pipeline.runs.request_checks import with_own_settings
    from pipeline.runs.result import REPORT

    config = with_own_settings(config)
    if absent := run_weights.missing(config):
        for line in plan_lines(config) if dry_run else ():
            print(line)
        raise InputError("; ".join(absent))
    prepared = preflight.check(config)
    request = prepared.config.request
    scope = [str(request.classes)] * bool(request.classes) + ["the named samples"] * bool(request.sample_ids)
    print(
        f"{prepared.run_id}: forget {' and '.join(scope)}"
        + (f", sample {request.exchange} instead" if request.exchange else "")
        + f"; {config.method.name} on {config.train.workers} workers, "
        f"{prepared.trainable:,} of {sum(p.numel() for p in prepared.model.net.parameters()):,} parameters",
        flush=True,
    )
    if prepared.base_version:
        print(f"  {prepared.base_version.line}", flush=True)
    if request.forgotten_earlier:
        labels = ", ".join(map(str, request.forgotten_earlier))
        print(f"  forgotten earlier: {labels}; no row of them is read, each is measured", flush=True)
    if warning := preflight.warning_of(prepared):
        print(f"  warning: {warning}", flush=True)
    if prepared.choice is not None and not dry_run:
        print(f"  hvp {prepared.choice.hvp}: {prepared.choice.why}", flush=True)
    if dry_run:
        preflight.require_places(prepared.config)
        for line in plan_lines(prepared.config, prepared.base):
            print(line)
        print("dry run: the request, the lake and the weights fit together; nothing was written")
        return 0
    result = unlearn.run(prepared)
    print(summary(result, storage.join(prepared.run_uri, REPORT)))
    return GATE_FAILED if config.require_gate and not result["gate"]["passed"] else 0


def plan_lines(config: UnlearnConfig, base: "Stored | None" = None) -> list[str]:
    """The memory plan as lines; none for a family that has no plan."""
    from pipeline.runs import run_weights

    try:
        plan = run_weights.plan_of(config, base)
        return plan.lines(config.train.memory_gib) if plan else []
    except ValueError as error:
        raise InputError(str(error)) from error


if __name__ == "__main__":
    sys.exit(command_line.main(UnlearnConfig, run, __doc__, flags=("require_gate",), default_config=CONFIG))
