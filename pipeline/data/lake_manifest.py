"""What the manifest of a lake says of how it was made, and what has to be true before it is written."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.data import parquet_shards
from pipeline.data.ingest import Made, Rejected
from pipeline.data.lake import SCHEMA_VERSION, Class, Lake, Manifest
from pipeline.data.parquet_shards import Shard
from pipeline.data.sources.base import Item, RawImages, Split
from pipeline.data.vae_encoder import Plan, plan_encoding
from pipeline.errors import InputError


def passed_over(source: RawImages) -> list[str]:
    """What a source of files says that it holds and does not use, a line a reason."""
    return list(getattr(source, "passed_over", []))


def settings_of(config: PrepareConfig) -> dict[str, dict[str, Any]]:
    """Every setting that changes what the lake holds, by the section of the manifest that records it."""
    return {
        "source": config.source.model_dump(mode="json"),
        "preprocessing": config.prepare.model_dump(mode="json", exclude={"max_rejected"}),
    }


def require_same_settings(lake: Lake, config: PrepareConfig) -> None:
    """Raise `InputError` naming the first setting in which the complete `lake` differs from `config`."""
    encoding = (
        lake.manifest.encoder
        if config.encoder.kind == "identity" == lake.manifest.encoder.kind
        else plan_encoding(config).encoding
    )
    for section, settings in {**settings_of(config), "encoder": encoding.model_dump()}.items():
        recorded = lake.manifest.model_dump(mode="json")[section]
        # a lake says of its source also what another kind of source would have read
        others = [] if section == "source" else sorted(recorded.keys() - settings.keys())
        for key in [*settings, *others]:
            if settings.get(key) != recorded.get(key):
                raise InputError(
                    f"the lake {lake.uri} was made with {section}.{key} = {recorded.get(key)!r}, got"
                    f" {settings.get(key)!r}: pass another name with --set lake=<name>, or remove that folder"
                    " first"
                )


def require_all(
    items: Sequence[Item], outcomes: Sequence[Made], rejected: Sequence[Rejected], config: PrepareConfig
) -> None:
    """Every listed image is in a shard or named as rejected, no more are rejected than the configuration puts
    up with, and some are left to train on."""
    parquet_shards.require_rows(
        "the shards just made", sum(outcome.items for outcome in outcomes), len(items)
    )
    limit = config.prepare.max_rejected
    too_many = limit is not None and len(rejected) > limit
    trained = any(outcome.shard is not None and outcome.shard.split == "train" for outcome in outcomes)
    if rejected and (too_many or not trained):
        worst = min(rejected, key=lambda item: item.sample_id)
        expected = f"at most {limit}" if too_many else "some to train on"
        more = ", or raise prepare.max_rejected" if too_many else ""
        raise InputError(
            f"source: {len(rejected)} of {len(items)} images cannot be used, expected {expected}; the first"
            f" is {worst.ref} ({worst.reason}): mend or remove them{more}"
        )


def manifest_of(
    config: PrepareConfig, source: RawImages, rows_as: Plan, shards: Sequence[Shard], rejected: int
) -> Manifest:
    rows: Counter[tuple[int, Split]] = Counter()
    for shard in shards:
        rows[shard.label, shard.split] += shard.rows
    settings = settings_of(config)
    return Manifest(
        name=config.lake,
        schema_version=SCHEMA_VERSION,
        kind=rows_as.kind,
        shape=list(rows_as.shape),
        classes=[
            Class(
                label=label, name=name, train_rows=rows[label, "train"], heldout_rows=rows[label, "heldout"]
            )
            for label, name in enumerate(source.classes)
        ],
        shards=sorted(shards, key=lambda shard: shard.path),
        rejected=rejected,
        passed_over=passed_over(source),
        source=settings["source"],
        preprocessing=settings["preprocessing"],
        encoder=rows_as.encoding,
    )
