"""Ray Tune over the main job's settings under an equal budget; the winner holds on fresh seeds before it is
registered.

python jobs/sweep_imagenet.py --config jobs/configs/sweep_quickstart.yaml
python jobs/sweep_imagenet.py --config ... --set budget.trials=24 --set search.algorithm=random
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import SweepConfig
from pipeline.runtime import command_line


def run(config: SweepConfig, dry_run: bool) -> None:
    from pipeline.sweep import search
    from pipeline.sweep.terminal import ending, opening

    prepared = search.check(config)
    print(opening(config, prepared.sweep_id, prepared.base.config.optim.max_steps), flush=True)
    if dry_run:
        print("dry run: the space, the request, the lake and the weights fit together; nothing was written")
        return
    print(ending(search.run(prepared), prepared.uri))


if __name__ == "__main__":
    sys.exit(command_line.main(SweepConfig, run, __doc__))
