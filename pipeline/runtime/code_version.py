"""Which code ran: what result.json names."""

import os
import subprocess
from pathlib import Path

# set by cluster/submit.py and in the image, where no .git lies beside the code
VARIABLE = "UNLEARN_CODE_VERSION"


def code_version() -> str | None:
    """The commit of the checkout this runs from, marked when files differ, or what the environment says; None
    when neither is known."""
    if os.environ.get(VARIABLE):
        return os.environ[VARIABLE]
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a repository further up is another project's
        return None
    try:
        git = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip() or None
