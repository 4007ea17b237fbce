"""The sample ids of a request: read from their file, found in the lake, held against the ledger.

The list is the asker's file, and may go. What the ledger keeps of it in `<storage>/requests/ids/` are the
ids' hashes under the key of the tombstones: enough to find the rows again, nobody learns an id by it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.data.keyed_ids import read_key
from pipeline.data.lake import Lake
from pipeline.data.parquet_shards import FLIP_MARK, read_column
from pipeline.data.selection import find_ids, read_ids
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.requests.ledger import NamedSamples, Request

KEY = "request.sample_ids"
FOLDER = ("requests", "ids")  # under the storage root


@dataclass(frozen=True)
class Named:
    """What the lake holds of the samples that a request names: the class of each id. `uri`: a file that lists
    the request's ids, None where only their hashes are left."""

    classes: Mapping[str, int]
    uri: str | None = None


def read_list(uri: str) -> list[str]:
    """The ids that the text file at `uri` lists, each once, sorted."""
    if redact(uri) != uri:  # the ledger keeps where the ids are, and never forgets it
        raise InputError(f"{KEY}: got a URI with a password in it, expected credentials from the environment")
    try:
        return sorted(set(read_ids(uri, KEY)))
    except UnicodeDecodeError as error:
        raise InputError(f"{KEY}: {uri!r} is no text in UTF-8, expected one sample id a line") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{KEY}: {uri!r} cannot be read ({error.strerror}), expected a text file") from error


def named(uri: str, ids: Sequence[str]) -> NamedSamples:
    """What the ledger keeps of `ids` (as of `read_list`) before the lake was looked at."""
    return NamedSamples(uri=uri, count=len(ids), digest=storage.digest_of(list(ids)), classes={})


def _in_lake(lake: Lake, ids: Sequence[str]) -> dict[str, int]:
    """The class of each of `ids` that is a training row of the lake."""
    shards = {shard.path: shard for shard in lake.shards()}
    rows_by_shard = find_ids(lake, list(shards.values()), ids)
    return {name: shards[path].label for path, (_, names) in rows_by_shard.items() for name in names}


def classes_of(lake: Lake, ids: Sequence[str]) -> dict[str, int]:
    """The class of each id. Raises `InputError` for ids that are no training rows of the lake."""
    classes = _in_lake(lake, ids)
    if missing := sorted(set(ids) - classes.keys()):
        raise InputError(
            f"{KEY}: {len(missing)} of {len(ids)} ids are no training rows of lake {lake.manifest.name!r},"
            f" the first is {missing[0]!r}; expected ids of the lake's sample_id column"
        )
    return classes


def count_by_class(classes: dict[str, int]) -> dict[int, int]:
    return dict(sorted(Counter(classes.values()).items()))


def keep(storage_root: str, request_id: str, ids: Sequence[str]) -> None:
    """Leave the hashes of a request's `ids` (as of `read_list`) in the ledger's folder."""
    uri = _uri(storage_root, request_id)
    if not storage.exists(uri):
        key = read_key(storage_root)
        storage.write_json(uri, {"key": key.name, "hashes": sorted(map(key.hashed, ids))})


def of_request(request: Request, lake: Lake, storage_root: str) -> Named:
    """What `request` names and the lake holds, nothing where it names no samples. Raises `InputError` when
    its list is gone, or is another one, and the ledger has no hashes of it."""
    samples = request.terms.samples
    if samples is None:
        return Named({})
    try:
        ids = read_list(samples.uri)
        reason = f"lists {len(ids)} ids that are not the {samples.count} it was submitted with"
    except InputError:
        ids, reason = [], "cannot be read"
    if storage.digest_of(ids) == samples.digest:
        return Named(_in_lake(lake, ids), samples.uri)
    uri = _uri(storage_root, request.id)
    if not storage.exists(uri):
        raise InputError(
            f"request {request.id}: {samples.uri} {reason}, and nobody else knows which they are; restore the"
            " file"
        )
    kept = storage.read_json(uri)
    key = read_key(storage_root, create=False)
    key.require(str(kept["key"]), uri)
    shards = lake.shards(sorted(samples.classes))
    labels = {
        name.removesuffix(FLIP_MARK): shard.label
        for shard in shards
        for name in read_column(lake.uri, shard, "sample_id")
    }
    names = key.matches(labels, kept["hashes"])
    if len(names) == samples.count and storage.digest_of(sorted(names)) != samples.digest:
        raise InputError(f"{uri}: not the hashes of request {request.id}'s samples; {storage.RESTORE}")
    return Named({name: labels[name] for name in names})


def _uri(storage_root: str, request_id: str) -> str:
    return storage.join(storage_root, *FOLDER, f"{request_id}.json")
