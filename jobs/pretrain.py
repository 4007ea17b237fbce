"""Train a small DiT or VAE and its judge from a lake. The same command again goes on where it was
interrupted, to the same bits.

python jobs/pretrain.py --config jobs/configs/pretrain_digits.yaml [--set optim.max_steps=1200 ...]
python jobs/pretrain.py --config ... --set 'without=[1]'               (a reference that never saw a 1)
python jobs/pretrain.py --config ... --set without_samples=ids.txt     (one that never saw these rows)
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import PretrainConfig
from pipeline.runtime import command_line


def run(config: PretrainConfig, dry_run: bool) -> None:
    from pipeline.data.tombstones import open_lake
    from pipeline.training import pretrain_run

    if dry_run:
        lake = open_lake(config.storage, config.lake)
        pretrain_run.check(config, lake)
        description, _ = pretrain_run.descriptions(config, lake)
        print(
            f"would train {description['size']}{'' if config.is_reference else ' and its judge'}"
            f" on {config.lake} ({len(description['class_names']) - len(config.without)} classes), "
            f"{config.optim.max_steps} steps of {config.optim.batch_size} on {config.train.workers} workers"
        )
        return
    pretrained = pretrain_run.pretrain(config)
    judge = pretrained.judge_manifest
    accuracies = (
        ""
        if judge["heldout_accuracy"] is None
        else f": {judge['heldout_accuracy']:.1%} right on {judge['heldout_rows']} held-out images"
    )
    print(f"judge{accuracies}")
    print(
        f"{config.model.size}, {pretrained.manifest['parameters']:,} parameters:"
        f" {quality(pretrained.manifest)}"
    )
    print(f"  {pretrained.model_uri}")
    print(
        "  trained already with these settings, used as it is"
        if pretrained.reused
        else f"  trained in {pretrained.seconds:.1f} s"
    )


def quality(manifest: Mapping[str, Any]) -> str:
    """What the judge found: images predicted right or, of a model without labels, what its images are."""
    if accuracy := manifest.get("judged_right"):
        worst = f"worst class {accuracy['min']:.1%}, CFG {accuracy['cfg_scale']:g}"
        return f"{accuracy['mean']:.1%} of {accuracy['samples']} sampled images judged right ({worst})"
    shares = manifest["class_shares"]
    text = ", ".join(f"{label}: {share:.1%}" for label, share in shares["per_class"].items())
    return f"{shares['n']} sampled images judged {text}"


if __name__ == "__main__":
    sys.exit(command_line.main(PretrainConfig, run, __doc__))
