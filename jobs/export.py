"""A registered version in the formats that others read: a diffusers DiTPipeline folder, or a state dict with
the published names.

python jobs/export.py --config jobs/configs/export_imagenet.yaml
python jobs/export.py --config ... --set version=champion --set format=pt --set output=dit.pt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.export import ExportConfig
from pipeline.runtime import command_line


def run(config: ExportConfig, dry_run: bool) -> None:
    from pipeline.tracking import export

    name, model = export.source(config)
    output = export.output_of(config, name)
    if dry_run:
        print(
            f"would write {name} ({model.config['size']}, digest {model.digest[:12]}) as {config.format} to"
            f" {output}"
        )
        return
    files = export.export(config, model, output)
    print(
        f"{name} ({model.config['size']}, digest {model.digest[:12]}) as {config.format}: {output}, {files}"
        " files"
    )
    if config.format == "pipeline":
        print(
            "  diffusers.DiTPipeline.from_pretrained reads it; models.export.load_pipeline also sets the"
            " model's own timestep frequencies"
        )


if __name__ == "__main__":
    sys.exit(command_line.main(ExportConfig, run, __doc__))
