"""The paper's MNIST table again: every method from one checkpoint under the published protocol, beside the
published figures.

python jobs/reproduce_paper.py --config jobs/configs/reproduce_mnist.yaml \\
    [--set model.weights=<vae_200.pth> --set judge.weights=<classifier> ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import storage
from pipeline.config import ReproduceConfig
from pipeline.runtime import command_line


def run(config: ReproduceConfig, dry_run: bool) -> None:
    from pipeline.runtime.progress import gathered
    from pipeline.studies import reproduction_table as reproduction

    inputs = reproduction.check(config)
    count = len(config.rows) * len(config.seeds)
    if dry_run:
        print(
            f"would make {count} runs: {len(config.rows)} rows on {len(config.seeds)} seeds, from"
            f" {inputs.model.uri}"
        )
        return
    storage.require_writable(config.storage)
    rows = gathered(reproduction.runs(config, inputs), f"reproducing {len(config.rows)} rows", count)
    page = reproduction.table(
        config, rows, reproduction.costs(config, inputs), reproduction.base(config, inputs)
    )
    uri = storage.join(config.storage, "reproductions", f"{config.name}.md")
    storage.write_text(uri, page + "\n")
    print(page)
    print(f"\n{len(rows)} runs from {inputs.model.uri}; {uri}")


if __name__ == "__main__":
    sys.exit(command_line.main(ReproduceConfig, run, __doc__))
