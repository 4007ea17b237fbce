"""Answer the deletion requests that are open: one run for all of them, from weights that honour the rest.

python jobs/process_requests.py --config jobs/configs/process_digits.yaml
python jobs/process_requests.py --config ... --set start=champion     (base | champion | auto)
python jobs/process_requests.py --config ... --set promote=approval   (automatic | approval)
python jobs/process_requests.py --config ... --set rehearse=samples   (of the base, for purged rows)

One at a time: a second one says who works. Killed anywhere, the next one goes on. --dry-run says what would
be done. Exits 0 when nothing is open or all was answered, 3 when something is left, overdue or refused; with
--require-gate 4 where that is because a run failed its gate.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.commands import registry_command
from pipeline.config.process import ProcessConfig
from pipeline.config.registry import RegistryConfig
from pipeline.runtime import command_line
from pipeline.runtime.command_line import GATE_FAILED

ALARM = 3  # exit code: something is left open, overdue or refused


def run(config: ProcessConfig, dry_run: bool) -> int:
    from pipeline.governance import promotion
    from pipeline.requests import preview, process
    from pipeline.requests.main_job import RegisteredModel

    registry = RegistryConfig(storage=config.storage, tracking=config.tracking, key=config.key)

    def promote(version: int) -> None:
        promotion.promote(registry.model_copy(update={"version": str(version)}))

    promotion.require_vouched_for(registry)
    model = RegisteredModel(config, promote)
    if dry_run:
        outcome = preview.preview(config, model)
        print("\n".join(outcome.lines))
        return ALARM if outcome.alarms else 0
    summary = process.process(config, model, say=lambda line: print(line, flush=True))
    for name, reason in summary.left.items():
        print(f"left: request {name}: {reason}")
    for name, version in summary.awaiting.items():
        if name not in summary.left:
            answer = registry_command("promote", config.tracking, config.storage, f"version={version}")
            print(f"request {name} waits for version {version} to be promoted: {answer}")
    for word, names in (("overdue", summary.overdue), ("refused", summary.refused)):
        if names:
            print(f"{word}: {', '.join(names)}")
    name = config.tracking.model_name
    if not summary.alarms and not summary.awaiting:
        print(f"nothing is open: every request to {name} is answered")
    if summary.elsewhere:
        print(f"open to other models than {name} (tracking.model_name): {', '.join(summary.elsewhere)}")
    if summary.gate_failed and config.require_gate:
        return GATE_FAILED
    return ALARM if summary.alarms else 0


if __name__ == "__main__":
    sys.exit(command_line.main(ProcessConfig, run, __doc__, flags=("require_gate",)))
