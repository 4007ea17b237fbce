"""The board: every method and setting of a grid on several requests and seeds. Prints a Markdown table, draws
a picture of samples for each request, and leaves a page with all runs. An interrupted one goes on; with
--set shards=N --set shard=K several machines share it.

python jobs/compare_methods.py --config jobs/configs/compare_digits.yaml [--set 'seeds=[0]' ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import CompareConfig
from pipeline.runtime import command_line


def run(config: CompareConfig, dry_run: bool) -> None:
    from pipeline.data.tombstones import open_lake
    from pipeline.runtime.progress import gathered
    from pipeline.studies import board
    from pipeline.studies.comparison import compare, draw_sheets, every_result, results_uri, table
    from pipeline.studies.grid import cells, require_served

    require_served(config)
    runs = cells(config)[config.shard :: config.shards]
    uri = results_uri(config)
    if dry_run:
        print(
            f"would make {len(runs)} runs: {len(config.rows)} settings,"
            f" {len(config.pairs) + len(config.requests)} requests, {len(config.seeds)} seeds"
        )
        return
    gathered(compare(config, uri), f"comparing {len(config.rows)} settings", len(runs))
    results = every_result(config)
    print(table(results, list(config.rows)))
    print(f"\n{len(results)} runs in {uri}")
    for picture in draw_sheets(config, results):
        print(f"what they sample: {picture}")
    names = [item.name for item in open_lake(config.storage, config.lake).manifest.classes]
    page, missing = board.write(config, results, names)
    for line in missing:
        print(line)
    print(f"board {page}")


if __name__ == "__main__":
    sys.exit(command_line.main(CompareConfig, run, __doc__))
