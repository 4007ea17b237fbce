"""Progress on the terminal: a bar where there is one, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts to `total`. In a log it prints a line at most every `every_s` seconds, and at the end."""

    def __init__(self, title: str, total: int, every_s: float = 10.0):
        self._what, self._total, self._every_s = title, total, every_s
        self._count, self._note = 0, ""
        self._bar = (
            tqdm(total=total, desc=title, leave=False, dynamic_ncols=True) if sys.stderr.isatty() else None
        )
        self._printed, self._printed_at = 0, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, count: int) -> None:
        """`count` more are done."""
        self.at(self._count + count)

    def at(self, count: int, note: str = "") -> None:
        """`count` are done in all."""
        self._count, self._note = count, note
        if self._bar is not None:
            self._bar.n = min(count, self._total)
            self._bar.set_postfix_str(note)
        elif time.monotonic() - self._printed_at >= self._every_s:
            self._print()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._count != self._printed:
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = self._count, time.monotonic()
        print(
            f"  {self._what} {self._count}/{self._total}  {self._note}".rstrip(), file=sys.stderr, flush=True
        )


def gathered(results: Iterable[dict[str, Any]], title: str, total: int) -> list[dict[str, Any]]:
    """All `results` of a study, counted as they come; the line names the `row` that each belongs to."""
    gathered_results = []
    with Progress(title, total) as progress:
        for result in results:
            gathered_results.append(result)
            progress.at(len(gathered_results), result["row"])
    return gathered_results
