"""Record the golden losses anew, after a change that was meant to move them: python
tests/training/regenerate_golden.py

Look at the difference before committing it: every number that moved is a claim that the method changed.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

if __name__ == "__main__":
    import torch
    from runs import GOLDEN, GOLDEN_RUNS, golden_losses

    torch.set_num_threads(1)
    found = {
        name: {key: [float(f"{v:.7g}") for v in values] for key, values in golden_losses(run).items()}
        for name, run in GOLDEN_RUNS.items()
    }
    lines = [f'  "{name}": {json.dumps(values)}' for name, values in found.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{GOLDEN}: {len(found)} runs")
