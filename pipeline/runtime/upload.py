"""What `ray job submit --working-dir .` sends of a checkout: not what .gitignore or .rayignore names."""

import subprocess
from pathlib import Path

IGNORED = 0  # exit code of git check-ignore


def is_ignored(checkout: Path, path: str) -> bool:
    """Whether `path` under `checkout` stays behind; False where git cannot be asked."""
    try:
        outcome = subprocess.run(
            [
                "git",
                "-c",
                f"core.excludesFile={checkout / '.rayignore'}",
                "check-ignore",
                "-q",
                "--no-index",
                path,
            ],
            cwd=checkout,
            capture_output=True,
        )
    except OSError:
        return False
    return outcome.returncode == IGNORED
