"""The retain stream read by Ray Data inside each worker: the rank's own files, in an explicit order."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from pipeline.data import parquet_shards
from pipeline.data.batch import Batch
from pipeline.data.partition import Partition
from pipeline.data.retain_stream import ahead, assemble, files_to_read

PREFETCH = 4
HELD = 16  # blocks in the object store for one rank, read ahead or not yet let go
SMALLEST = 1 << 20  # bytes of a block; files are blocks, smaller ones go together


def retain_stream(partition: Partition, rank: int, world_size: int, start_step: int = 0) -> Iterator[Batch]:
    """The rank's part of each global batch from `start_step` on, as `retain_stream_local` gives it.

    One task reads all the rank's files in order and yields them as it goes: the project's own reader waits
    out a busy store and counts the rows, and the task waits when few blocks are taken, so what is held ahead
    stays the same however much there is to read.
    """
    import ray

    from pipeline.runtime import compat_ray

    files = files_to_read(partition, rank, world_size, start_step)
    if not files:
        return iter(())
    compat_ray.quiet_data()
    descriptions = [file.model_dump_json(include=set(parquet_shards.File.model_fields)) for file in files]
    listing = ray.data.from_items([{"files": descriptions}])
    block = max(SMALLEST, *(file.bytes for file in files))
    listing.context.target_max_block_size = block
    listing.context.execution_options.preserve_order = True
    listing.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=HELD * block
    )
    # No CPU is asked for: training may hold them all, and a stream that waits for one would wait for ever.
    read: Any = partial(parquet_shards.read_listed, partition.uri)
    rows = listing.map_batches(read, batch_size=1, batch_format="numpy", num_cpus=0, concurrency=1)
    tables = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH)
    return ahead(assemble(partition, files, iter(tables), start_step))
