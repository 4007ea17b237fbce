"""Whether the tracking store is the one that the alias log speaks of."""

from pipeline.config import Registry
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.tracking import alias_log
from pipeline.tracking.mlflow_runs import client, tracking_uri
from pipeline.tracking.registry import find_version


def require_log_known(tracking: Registry, storage_root: str) -> None:
    """Raise `InputError` when the tracking store does not know the versions of the model that the alias log
    under the storage root names: it would number others from 1."""
    where, name = tracking_uri(tracking, storage_root), tracking.model_name
    entries = alias_log.read(storage_root, name)
    if not entries:
        return
    newest = str(max(entry.version for entry in entries))
    try:
        mlflow = client(tracking, storage_root, create=False)
        find_version(mlflow, tracking, storage_root, newest)
        alias_log.carried_out(mlflow, storage_root, name, entries)
    except alias_log.LogError:
        raise
    except InputError as error:
        raise InputError(
            f"tracking.uri: {redact(where)} does not know version {newest} of {name}, which the log at"
            f" {alias_log.folder(storage_root, name)} names ({error}); expected the store that it was"
            " registered in, or another tracking.model_name"
        ) from error
