"""The retain stream read with plain pyarrow: no Ray, for torchrun, tests and comparison."""

from collections.abc import Iterator

from pipeline.data import parquet_shards
from pipeline.data.batch import Batch, lanes_of
from pipeline.data.partition import Partition
from pipeline.data.retain_stream import assemble, files_to_read


def retain_stream(partition: Partition, rank: int, world_size: int, start_step: int = 0) -> Iterator[Batch]:
    """The rank's part of each global batch from `start_step` on. The next segment is read while one is
    consumed."""
    files = files_to_read(partition, rank, world_size, start_step)
    depth = len(lanes_of(partition.manifest.lanes, rank, world_size))
    return assemble(partition, files, parquet_shards.read_ahead(partition.uri, files, depth), start_step)
