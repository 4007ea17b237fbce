"""The retain stream read by Ray Data inside each worker: the rank's own files, in an explicit order."""

from collections.abc import Iterator

from pipeline import storage
from pipeline.data.partition import Partition
from pipeline.data.rows import Batch
from pipeline.data.stream import assemble, files_to_read

PREFETCH = 4


def retain_stream(partition: Partition, rank: int, world: int, start_step: int = 0) -> Iterator[Batch]:
    """The rank's part of each global batch from `start_step` on: the same rows as `stream_local` gives."""
    import ray

    from pipeline import cluster_ray

    cluster_ray.quiet()
    files = files_to_read(partition, rank, world, start_step)
    if not files:
        return iter(())
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    paths = [storage.join(partition.uri, file.path) for file in files]
    rows = ray.data.read_parquet(paths, filesystem=storage.arrow_filesystem(partition.uri), override_num_blocks=len(paths))
    tables = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH)
    return assemble(partition, files, iter(tables), start_step)
