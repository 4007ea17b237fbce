"""The retain stream read by Ray Data inside each worker: the rank's own files, in an explicit order."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from pipeline.data import shards
from pipeline.data.partition import Partition
from pipeline.data.rows import Batch
from pipeline.data.stream import ahead, assemble, files_to_read

PREFETCH = 4
READERS = 2  # files read at once for one rank


def retain_stream(partition: Partition, rank: int, world: int, start_step: int = 0) -> Iterator[Batch]:
    """The rank's part of each global batch from `start_step` on: the same rows as `stream_local` gives.

    Each file is one read task and one block: the project's own reader waits out a busy store and counts the rows.
    """
    import ray

    from pipeline.runtime import cluster_ray

    files = files_to_read(partition, rank, world, start_step)
    if not files:
        return iter(())
    cluster_ray.quiet()
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    described = [{"file": file.model_dump_json(include=set(shards.File.model_fields))} for file in files]
    listed = ray.data.from_items(described, override_num_blocks=len(files))
    # No CPU is asked for: training may hold them all, and a stream that waits for one would wait for ever.
    read: Any = partial(shards.read_listed, partition.uri)
    rows = listed.map_batches(read, batch_size=1, batch_format="numpy", num_cpus=0, concurrency=min(READERS, len(files)))
    tables = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH)
    return ahead(assemble(partition, files, iter(tables), start_step))
