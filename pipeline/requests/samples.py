"""The sample ids of a request: read from their file, found in the lake, held against the ledger."""

from collections import Counter
from collections.abc import Sequence

from pipeline import storage
from pipeline.data.lake import Lake
from pipeline.data.selection import find_ids, read_ids
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.requests.ledger import NamedSamples, Request

KEY = "request.sample_ids"


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


def classes_of(lake: Lake, ids: Sequence[str]) -> dict[str, int]:
    """The class of each id. Raises `InputError` for ids that are no training rows of the lake."""
    shards = {shard.path: shard for shard in lake.shards()}
    rows_by_shard = find_ids(lake, list(shards.values()), ids)
    classes = {name: shards[path].label for path, (_, names) in rows_by_shard.items() for name in names}
    if missing := sorted(set(ids) - classes.keys()):
        raise InputError(
            f"{KEY}: {len(missing)} of {len(ids)} ids are no training rows of lake {lake.manifest.name!r},"
            f" the first is {missing[0]!r}; expected ids of the lake's sample_id column"
        )
    return classes


def count_by_class(classes: dict[str, int]) -> dict[int, int]:
    return dict(sorted(Counter(classes.values()).items()))


def of_request(request: Request, lake: Lake) -> dict[str, int]:
    """Sample id -> class of what `request` names, empty where it names none. Raises `InputError` when its
    file is gone, or lists other ids than when it was submitted."""
    samples = request.terms.samples
    if samples is None:
        return {}
    ids = read_list(samples.uri)
    if storage.digest_of(ids) != samples.digest:
        raise InputError(
            f"request {request.id}: {samples.uri} lists {len(ids)} ids that are not the {samples.count} it"
            " was submitted with; restore the file"
        )
    return classes_of(lake, ids)
