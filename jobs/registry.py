"""Registered versions: which there are, which one serves, and the way back.

python jobs/registry.py list     --config jobs/configs/registry_digits.yaml
python jobs/registry.py show     --config ... --set version=3   (absent: candidate)
python jobs/registry.py promote  --config ... --set version=3   (absent: candidate; what passed its gate)
python jobs/registry.py rollback --config ...                   (champion goes back to the one before)
python jobs/registry.py history  --config ...                   (every change of an alias, the chain verified)
python jobs/registry.py verify   --config ... --set version=3   (absent: champion; certificate, log, weights)
python jobs/registry.py verify   --config ... --replay          (and its request run again)
python jobs/registry.py sign     --config ... --set key=k.pem   (vouches for a log of before there was a key)
python jobs/registry.py replay   --config ... --set version=3   (absent: champion; its request run again)
python jobs/registry.py purge    --config ... --request forget-1 (a finished request's data and pictures)
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import RegistryConfig
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.runtime import command_line


def list_(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.tracking.registry import rows

    table = [
        ("version", "aliases", "gate", "method", "request", "run"),
        *rows(config.tracking, config.storage),
    ]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.tracking.registry import CANDIDATE, resolve

    version = resolve(config.tracking, config.storage, config.version or CANDIDATE)
    facts = {
        "aliases": ", ".join(version.aliases) or "none",
        "source": version.source,
        **dict(sorted(version.tags.items())),
    }
    print(f"{version.name} version {version.version}")
    for key, value in facts.items():
        print(f"  {key:17} {value}")


def promote(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.governance import promotion
    from pipeline.tracking.alias_log import certificate_uri

    name = config.tracking.model_name
    number, entry = promotion.promote(config, dry_run=dry_run)
    if dry_run:
        print(f"would make {name} version {number} champion")
    elif entry is None:
        print(f"{name} version {number} is champion already")
        print(f"certificate: {certificate_uri(config.storage, name, number)}")
    else:
        overridden = " although it was refused, the reason recorded" if entry.details["override"] else ""
        print(f"{name} version {number} is champion now{overridden}; before: {entry.came_from or 'none'}")
        print(f"certificate: {certificate_uri(config.storage, name, number)}")


def rollback(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.governance import promotion

    previous, now = promotion.rollback(config, dry_run=dry_run)
    print(
        f"{config.tracking.model_name}: champion {'would go' if dry_run else 'went'} back from version"
        f" {previous}"
        f" to version {now}"
    )


def history(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.governance import promotion

    entries = promotion.history(config)
    for entry in entries.entries:
        moved = (
            f"{entry.alias}: {entry.came_from or 'none'} -> {entry.version}"
            if entry.alias
            else _subject(entry.details, entry.version)
        )
        reason = "".join(
            f"  {key}: {entry.details[key]}" for key in ("override", "reason") if entry.details.get(key)
        )
        if note := entries.before.get(entry.number):
            print(f"      ({note})")
        print(
            f"{entry.number:4}  {entry.time}  {entry.action:8}  {moved:24}  {entry.by} "
            f" {entry.digest[:12]}{reason}"
        )
    signed = sum(entry.signature is not None for entry in entries.entries)
    print(f"{len(entries.entries)} entries, the chain is unbroken, {signed} signed")
    if entries.pending:
        print(
            f"entry {entries.pending[0].number} and later are not carried out in MLflow: the command was"
            " interrupted; call it again"
        )
    if entries.now:
        raise InputError(
            f"{'; '.join(entries.now)}: moved by other means; promote or roll back to bring the two together"
        )


def _subject(details: Mapping[str, Any], version: int) -> str:
    """What an entry that moves no alias is about."""
    if "vouches_for" in details:
        return f"entries 1 to {details['vouches_for']}"
    return details.get("request") or f"version {version}, labels {details['labels']}"


def sign(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.governance import promotion

    loose, entry = promotion.sign(config, dry_run=dry_run)
    for one in loose:
        print(
            f"{'would vouch' if dry_run else 'vouched'} for entry {one.number} of {one.time} by {one.by}:"
            f" {one.action}, {one.alias} -> version {one.version}"
        )
    if entry is not None:
        print(f"entry {entry.number} signs the log of {config.tracking.model_name} as it was")


def verify(config: RegistryConfig, dry_run: bool) -> int | None:
    from pipeline.governance import signing, verification
    from pipeline.hash_chain import LogError
    from pipeline.tracking.version_check import VersionError

    try:
        for line in verification.verify(config):
            print(line, flush=True)
    except (signing.CertificateError, LogError, VersionError) as error:  # found by checking: no bad input
        print(redact(f"error: {error}"), file=sys.stderr)
        return 1
    if config.replay:
        replay(config, dry_run)
    return None


def replay(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.runs.replay import replay as run_again

    if dry_run:
        print("would run the version's request again and compare the weights; nothing would be registered")
        return
    outcome = run_again(config)
    title = f"{config.tracking.model_name} version {outcome.version} (run {outcome.run_id})"
    if outcome.replayed != outcome.registered:
        raise InputError(
            f"{title}: replayed weights have digest {outcome.replayed[:12]}, the registered ones"
            f" {outcome.registered[:12]}; they are equal only with the same code, packages, kind of processor"
            " and number of workers"
        )
    print(f"{title}: replayed to the bit, digest {outcome.replayed[:12]}")


def purge(config: RegistryConfig, dry_run: bool) -> None:
    from pipeline.governance import purge as purging
    from pipeline.governance.purge_plan import with_full_id

    config = with_full_id(config)
    plan = purging.find(config)
    for line in plan.lines:
        print(f"{'would remove' if dry_run else 'removing'} {line}", flush=True)
    for line in plan.left:
        print(f"  not removed: {line}")
    if dry_run:
        print(f"request {plan.request}: {len(plan.lines)} things would go; nothing was written")
        return
    tombstone = purging.purge(config, plan)
    print(f"request {plan.request}: purged, {tombstone.count} sample ids may not be ingested again")


VERBS = {
    "list": list_,
    "show": show,
    "promote": promote,
    "rollback": rollback,
    "history": history,
    "sign": sign,
    "verify": verify,
    "replay": replay,
    "purge": purge,
}

FLAGS = ("replay", "allow_missing")

if __name__ == "__main__":
    sys.exit(command_line.main(RegistryConfig, VERBS, __doc__, shorthands=["request"], flags=FLAGS))
