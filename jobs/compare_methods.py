"""Every method and setting of a grid on several requests and seeds; prints a Markdown table and draws a
picture of samples for each request. An interrupted comparison goes on.

python jobs/compare_methods.py --config jobs/configs/compare_digits.yaml [--set 'seeds=[0]' ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import storage
from pipeline.config import CompareConfig
from pipeline.runtime import command_line


def run(config: CompareConfig, dry_run: bool) -> None:
    from pipeline.runtime.progress import gathered
    from pipeline.studies.comparison import cells, compare, draw_sheets, table

    runs = cells(config)
    uri = storage.join(config.storage, "comparisons", f"{config.name}.jsonl")
    if dry_run:
        print(
            f"would make {len(runs)} runs: {len(config.rows)} settings, {len(config.pairs)} requests,"
            f" {len(config.seeds)} seeds"
        )
        return
    results = gathered(compare(config, uri), f"comparing {len(config.rows)} settings", len(runs))
    print(table(results, list(config.rows)))
    print(f"\n{len(results)} runs in {uri}")
    for picture in draw_sheets(config, results, uri):
        print(f"what they sample: {picture}")


if __name__ == "__main__":
    sys.exit(command_line.main(CompareConfig, run, __doc__))
