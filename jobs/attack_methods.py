"""Methods under attack: free label embeddings, benign fine-tuning, quantisation and relearning, on several
requests and seeds; prints a Markdown table with the model before and, where it was pretrained, one that never
saw the class. An interrupted comparison goes on.

python jobs/attack_methods.py --config jobs/configs/attack_digits.yaml [--set 'seeds=[0]' ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.attack import AttackMethodsConfig
from pipeline.runtime import command_line


def run(config: AttackMethodsConfig, dry_run: bool) -> None:
    from pipeline.runtime.progress import gathered
    from pipeline.studies.attack_comparison import attacked_cells, compare, table
    from pipeline.studies.comparison import results_uri
    from pipeline.studies.grid import require_served

    require_served(config)
    cells, uri = attacked_cells(config)[config.shard :: config.shards], results_uri(config)
    if dry_run:
        print(f"would make {len(cells)} runs, each with {len(config.attack_suite)} attacks and relearning")
        return
    rows = gathered(compare(config, uri), "attacking methods", len(cells))
    print(table(rows, config))
    print(f"\n{len(rows)} runs in {uri}")


if __name__ == "__main__":
    sys.exit(command_line.main(AttackMethodsConfig, run, __doc__))
