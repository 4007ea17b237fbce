"""The lake: a data set as Parquet shards in one folder per class, and the manifest that names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from pipeline import storage
from pipeline.config.commands import command, config_for
from pipeline.data.parquet_shards import Kind, Shard, Statistics, Stored
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.data.batch import Batch

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"


class Class(Stored):
    label: int
    name: str
    train_rows: int
    heldout_rows: int


class Encoding(Stored):
    """The encoder of a latent lake: the model sees stored latents times `scale`, after `statistics` where its
    family has them."""

    kind: str = "identity"
    digest: str | None = None
    scale: float = 1.0
    statistics: Statistics | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A lake without statistics is written, and digested, as it was before there were any."""
        return {
            key: value for key, value in serialise(self).items() if key != "statistics" or value is not None
        }


class Manifest(Stored):
    name: str
    schema_version: int
    kind: Kind
    shape: list[int]  # (H, W, C) of image, (C, H, W) of latent
    classes: list[Class]
    shards: list[Shard]
    rejected: int = 0
    passed_over: list[str] = Field([])  # what the source holds beside its images, a line a reason
    source: dict[str, Any]
    preprocessing: dict[str, Any]
    encoder: Encoding

    @property
    def digest(self) -> str:
        """What the lake holds, wherever it came from and whatever it is called: two lakes of the same rows
        share it."""
        return storage.digest_of(self.model_dump(mode="json", exclude={"name", "source", "passed_over"}))


@dataclass(frozen=True, kw_only=True)
class Lake:
    """`buried`: by shard path, the increasing indices of the rows that were purged. They are still in the
    file, and nothing reads them."""

    uri: str
    manifest: Manifest
    buried: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def buried_digest(self) -> str | None:
        """Of which rows were purged; None where none were."""
        if not self.buried:
            return None
        return storage.digest_of({path: list(rows) for path, rows in self.buried.items()})

    def shards(
        self, labels: Sequence[int] | None = None, split: Literal["train", "heldout"] = "train"
    ) -> list[Shard]:
        """The shards of `labels` (all when None), by label and part. Raises `InputError` for a label the lake
        lacks."""
        labels_there = {item.label for item in self.manifest.classes}
        for label in labels or []:
            if label not in labels_there:
                raise InputError(
                    f"class {label} is not in the lake {self.manifest.name!r}, expected one of"
                    f" {_ranges(sorted(labels_there))}"
                )
        selection = labels_there if labels is None else set(labels)
        shards = [
            shard for shard in self.manifest.shards if shard.split == split and shard.label in selection
        ]
        return sorted(shards, key=lambda shard: (shard.label, shard.path))

    def read(
        self, labels: Sequence[int] | None = None, split: Literal["train", "heldout"] = "train"
    ) -> "Batch":
        """Every row of `labels` that was not purged, in memory, by class and within a class by sample id."""
        # torch, which tasks that only write shards do without
        from pipeline.data.decode import read_batch
        from pipeline.data.units import Units

        manifest = self.manifest
        shards = self.shards(labels, split)
        return read_batch(
            self.uri,
            shards,
            manifest.kind,
            manifest.shape,
            Units(manifest.encoder.scale, manifest.encoder.statistics),
            without=self.buried,
        )


def lake_uri(storage_root: str, name_or_uri: str) -> str:
    """`name` under the storage root; anything with a slash is a URI already."""
    if "/" in name_or_uri:
        return storage.absolute(name_or_uri)
    return storage.join(storage_root, "lakes", name_or_uri)


def find_lake(uri: str) -> Lake | None:
    """The complete lake at `uri`, None when there is none. Raises `InputError` for one of another schema
    version."""
    path = storage.join(uri, MANIFEST)
    if not storage.exists(path):
        return None
    manifest = storage.read_json(path)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"the lake {uri} has schema version {version}, expected {SCHEMA_VERSION}: remove it and make it"
            f" again with `{_command(uri)}`"
        )
    try:
        return Lake(uri=uri, manifest=Manifest.model_validate(manifest))
    except ValidationError as error:
        raise InputError(
            f"the lake {uri} has a damaged manifest ({error.errors()[0]['msg']}): remove it and make it again"
        ) from error


def read_lake(uri: str) -> Lake:
    """The lake at `uri` as it is on disk; `InputError` says how to make a missing or outdated one. What
    learns from rows or looks at them goes by `tombstones.open_lake`, which knows what was purged."""
    lake = find_lake(uri)
    if lake is None:
        raise InputError(no_lake(uri))
    return lake


def no_lake(uri: str) -> str:
    """What is said of a lake that is missing at `uri`."""
    return f"no lake at {uri}: make it with `{_command(uri)}`"


def _command(uri: str) -> str:
    """What makes the lake at `uri`."""
    root, _, name = uri.rpartition("/lakes/")
    return command("prepare_data", config_for("prepare", name), root, *([] if root else [f"lake={uri}"]))


def _ranges(labels: Sequence[int]) -> str:
    if labels and list(labels) == list(range(labels[0], labels[-1] + 1)):
        return f"{labels[0]}..{labels[-1]}"
    return ", ".join(map(str, labels[:20])) + (", ..." if len(labels) > 20 else "")
