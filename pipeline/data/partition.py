"""The partition of one request: which rows are forgotten, which are retained, and the exact order they will
be streamed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data import parquet_shards
from pipeline.data.lake import MANIFEST, Lake
from pipeline.data.parquet_shards import File, Kind, Shard, Statistics, Stored
from pipeline.data.stand_ins import StandInFacts, StandIns

if TYPE_CHECKING:
    from pipeline.data.batch import Batch, Side
    from pipeline.data.units import Units

SCHEMA_VERSION = 3
LANE_FILE_BYTES = 16 << 20
COMPUTED_FROM = 10_000_000  # training rows of a lake; below it the order of earlier partitions stays


class LaneFile(File):
    """One lane's rows of one segment's steps, in step order."""

    segment: int
    lane: int


class Manifest(Stored):
    schema_version: int
    digest: str
    key: dict[str, Any]  # what the digest is made of
    kind: Kind
    shape: list[int]
    scale: float
    statistics: Statistics | None = None
    lanes: int
    batch_size: int
    steps: int
    segment_steps: int
    retain_labels: list[int]
    retain_rows: int  # distinct rows the stream is made of
    retain: list[LaneFile]
    forget: list[Shard]
    exchange: list[Shard]
    # per side: the lake's shards that were opened, and how many row groups were read of each
    opened: dict[str, dict[str, int]]
    stand_ins: StandInFacts | None = None  # among `forget`: sampled rows in the place of purged ones


@dataclass(frozen=True, kw_only=True)
class Partition:
    """`reused`: it was complete before it was asked for."""

    uri: str
    manifest: Manifest
    reused: bool = False

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def forgotten_images(self) -> list[Shard]:
        """Files of real rows to forget: without those that only stand in for them."""
        sampled = self.manifest.stand_ins.samples if self.manifest.stand_ins else {}
        return [file for file in self.manifest.forget if file.label not in sampled]

    @property
    def lane_batch(self) -> int:
        """Rows one lane gives to one step."""
        return self.manifest.batch_size // self.manifest.lanes

    def forget(self) -> "Batch":
        """Every row to forget, by class and sample id."""
        return self._read(self.manifest.forget)

    def exchange(self) -> "Batch":
        """Every training row of the exchange classes, by class and sample id; empty when the request has
        none."""
        return self._read(self.manifest.exchange)

    def side(self, name: Literal["forget", "exchange"], held_bytes: int) -> "Side":
        """The rows of `forget()` or `exchange()`: in memory where they take no more than `held_bytes`, read
        from their files as they are asked for otherwise."""
        files = self.manifest.forget if name == "forget" else self.manifest.exchange
        kind, shape = self.manifest.kind, self.manifest.shape
        if sum(file.rows for file in files) * parquet_shards.row_bytes(kind, shape) <= held_bytes:
            return self._read(files)
        from pipeline.data.stored_rows import open_rows

        return open_rows(self.uri, files, kind, shape, self._units)

    def _read(self, files: Sequence[Shard]) -> "Batch":
        # torch, which tasks that only write files do without
        from pipeline.data.decode import read_batch

        return read_batch(self.uri, files, self.manifest.kind, self.manifest.shape, self._units)

    @property
    def _units(self) -> "Units":
        from pipeline.data.units import Units

        return Units(self.manifest.scale, self.manifest.statistics)


def partition_key(
    config: UnlearnConfig,
    lake: Lake,
    sample_ids: Sequence[str] | None,
    neighbours: Sequence[int] | None,
    stand_ins: StandIns | None = None,
) -> dict[str, Any]:
    """All that decides what a partition holds; two requests that ask the same share it, whatever they are
    called. Rows that were purged since make it another one."""
    request = config.request
    whole = sorted(set(request.classes))
    return {
        "schema_version": SCHEMA_VERSION,
        # with named samples alone, where they are; the digests of earlier partitions stay
        "classes": whole if sample_ids is None else sorted(set(request.sample_classes)),
        **({"whole_classes": whole} if whole and sample_ids is not None else {}),
        **(
            {"forgotten_earlier": sorted(set(request.forgotten_earlier))} if request.forgotten_earlier else {}
        ),
        "sample_ids": None if sample_ids is None else storage.digest_of(sorted(set(sample_ids))),
        "exchange": {str(label): list(exchange) for label, exchange in request.exchange_classes.items()},
        "retain": request.retain,
        "neighbours": sorted(set(neighbours or [])) if request.retain == "neighbours" else None,
        "lake": lake.digest,
        "seed": config.seed,
        "lanes": config.partition.lanes,
        "batch_size": config.optim.batch_size,
        "steps": config.optim.max_steps + config.optim.moment_warmup_steps,
        "segment_steps": segment_steps(config, lake),
        **({"buried": buried} if (buried := lake.buried_digest) else {}),
        **({"stand_ins": dict(stand_ins.key)} if stand_ins else {}),
        **({"order": "computed"} if is_large(lake) else {}),
    }


def is_large(lake: Lake) -> bool:
    """Whether the order of the retained rows is computed place by place instead of sorted as a whole."""
    return sum(item.train_rows for item in lake.manifest.classes) >= COMPUTED_FROM


def segment_steps(config: UnlearnConfig, lake: Lake) -> int:
    """Steps of one lane file."""
    if config.partition.segment_steps is not None:
        return config.partition.segment_steps
    step_bytes = (
        config.optim.batch_size
        // config.partition.lanes
        * parquet_shards.row_bytes(lake.manifest.kind, lake.manifest.shape)
    )
    return max(1, LANE_FILE_BYTES // step_bytes)


def find_partition(uri: str) -> Partition | None:
    """The complete partition at `uri`, None when there is none."""
    path = storage.join(uri, MANIFEST)
    if not storage.exists(path):
        return None
    return Partition(uri=uri, manifest=storage.read_model(path, Manifest), reused=True)
