"""Train a small DiT and its judge from a lake.

python jobs/pretrain.py --config jobs/configs/pretrain_digits.yaml [--set optim.max_steps=1200 ...]
python jobs/pretrain.py --config jobs/configs/pretrain_digits.yaml --set without=[1]    (a gold reference that never saw a 1)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import cli
from pipeline.config import PretrainConfig


def run(config: PretrainConfig, dry_run: bool) -> None:
    from pipeline.data.lake import lake_uri, read_lake
    from pipeline.training import pretrain_ray

    if dry_run:
        lake = read_lake(lake_uri(config.storage, config.lake))
        pretrain_ray.check(config, lake)
        description, _ = pretrain_ray.descriptions(config, lake)
        print(
            f"would train {description['size']}{'' if config.without else ' and its judge'} on {config.lake} "
            f"({len(description['class_names']) - len(config.without)} classes), "
            f"{config.optim.max_steps} steps of {config.optim.batch_size} on {config.train.workers} workers"
        )
        return
    made = pretrain_ray.pretrain(config)
    drawn, judge = made.manifest["judged_right"], made.judge_manifest
    held = (
        "" if judge["heldout_accuracy"] is None else f": {judge['heldout_accuracy']:.1%} right on {judge['heldout_rows']} held-out images"
    )
    print(f"judge{held}")
    print(
        f"{config.model.size}, {made.manifest['parameters']:,} parameters: {drawn['mean']:.1%} of {drawn['samples']} drawn images "
        f"judged right (worst class {drawn['min']:.1%}, CFG {drawn['cfg_scale']:g})"
    )
    print(f"  {made.model_uri}")
    print("  trained already with these settings, used as it is" if made.reused else f"  trained in {made.seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(cli.main(PretrainConfig, run, __doc__))
