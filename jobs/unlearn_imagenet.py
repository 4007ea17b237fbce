"""The main job: request -> partition -> unlearn on Ray Train workers -> evaluate -> gate -> register.

python jobs/unlearn_imagenet.py --config jobs/configs/quickstart.yaml [--set request.classes=[3] --set 'request.exchange={3: 5}' ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import cli, storage
from pipeline.config import UnlearnConfig
from pipeline.tracking.terminal import summary


def run(config: UnlearnConfig, dry_run: bool) -> None:
    from pipeline import flow_ray

    prepared = flow_ray.check(config)
    request = prepared.config.request
    print(
        f"{prepared.run_id}: forget {request.classes or 'the named samples'}"
        + (f", draw {request.exchange} instead" if request.exchange else "")
        + f"; {config.method.name} on {config.train.workers} workers, "
        f"{prepared.trainable:,} of {sum(p.numel() for p in prepared.model.net.parameters()):,} parameters",
        flush=True,
    )
    if dry_run:
        print("dry run: the request, the lake and the weights fit together; nothing was written")
        return
    result = flow_ray.run(prepared)
    print(summary(result, storage.join(prepared.run_uri, flow_ray.REPORT)))


if __name__ == "__main__":
    sys.exit(cli.main(UnlearnConfig, run, __doc__))
