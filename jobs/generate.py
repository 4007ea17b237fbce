"""Draw images from a registered version, by label and seed: one PNG, a row per label, a column per seed.

python jobs/generate.py --config jobs/configs/generate_digits.yaml
python jobs/generate.py --config ... --set 'labels=[1, 7]' --set version=champion
python jobs/generate.py --config ... --set 'audit=<why>'   (also classes that a deletion request blocks)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import storage
from pipeline.config import GenerateConfig
from pipeline.errors import InputError
from pipeline.runtime import command_line


def run(config: GenerateConfig, dry_run: bool) -> None:
    import pandas as pd

    from models.block_list import UnreadableError
    from pipeline.evaluation.samplers import require_sampler
    from pipeline.reports.png import grid_png
    from pipeline.requests import block_list, ledger
    from pipeline.tracking import alias_log
    from pipeline.tracking.mlflow_runs import client
    from pipeline.tracking.registry import load_version, resolve
    from pipeline.weights.model_folder import class_count

    name = config.tracking.model_name
    version = resolve(config.tracking, config.storage, config.version)
    blocked = block_list.of_version(ledger.read_whole(config.storage), version)
    refused = [label for label in config.labels if label in blocked]
    if refused and config.audit is None:
        raise InputError(
            f"labels: class {refused[0]} is blocked: deletion request {blocked[refused[0]]} names it and"
            f" {name} version {version.version} does not honour it; leave it out, or --set 'audit=<why>',"
            " which is recorded"
        )
    output = config.output or storage.join(config.storage, "generated", f"{name}-v{version.version}.png")
    if storage.exists(output):
        print(f"{output} is there already and {'would be' if dry_run else 'is'} replaced", flush=True)
    if dry_run:
        print(
            f"would sample {len(config.labels)} x {len(config.seeds)} images of {name} version"
            f" {version.version} into {output}"
        )
        return
    model = load_version(config.tracking, config.storage, version)
    classes = class_count(model.unwrap_python_model().config)
    wrong = [label for label in config.labels if not 0 <= label < classes]
    if wrong:
        raise InputError(f"labels: got {wrong[0]}, expected classes of {name}: 0 to {classes - 1}")
    own = model.unwrap_python_model().model
    steps = config.steps or int(own.config["sampler"]["steps"])
    require_sampler(own.config, config.sampler, "", {"steps": steps})
    if config.sampler is not None:
        own.config["sampler"] = own.sampler_with(config.sampler.changes)
    if config.audit is not None:
        alias_log.note(
            client(config.tracking, config.storage, create=False),
            config.storage,
            name,
            action="audit",
            version=int(version.version),
            details={"reason": config.audit, "labels": config.labels, "blocked": refused, "output": output},
        )
        model.unwrap_python_model().audit = config.audit
    rows = pd.DataFrame([{"label": label, "seed": seed} for label in config.labels for seed in config.seeds])
    params = {
        key: value
        for key, value in {"cfg_scale": config.cfg_scale, "steps": config.steps}.items()
        if value is not None
    }
    try:
        images = model.predict(rows, params=params)  # (labels * seeds, H, W, C) uint8
    except UnreadableError as error:
        raise InputError(f"{error}; the next jobs/ledger.py submit writes it again") from error
    storage.write_bytes(output, grid_png(images, columns=len(config.seeds), smallest=64))
    print(
        f"{len(images)} images of {name} version {version.version}, a row for each of labels {config.labels}:"
        f" {output}"
    )


if __name__ == "__main__":
    sys.exit(command_line.main(GenerateConfig, run, __doc__))
