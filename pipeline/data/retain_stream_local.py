"""The retain stream read with plain pyarrow by whoever consumes it: the default of a worker."""

from collections.abc import Iterator
from functools import partial
from itertools import groupby

from pipeline.data import parquet_shards
from pipeline.data.batch import Batch, lanes_of
from pipeline.data.partition import Partition
from pipeline.data.retain_stream import batches_of, files_to_read


def retain_stream(partition: Partition, rank: int, world_size: int, start_step: int = 0) -> Iterator[Batch]:
    """The rank's part of each global batch from `start_step` on. One row group of each lane is in memory at a
    time; the files of the next segment are opened, and from an object store fetched, while one is consumed.

    Row groups of all lanes hold the same steps: they are cut at the same rows.
    """
    files = files_to_read(partition, rank, world_size, start_step)
    depth = len(lanes_of(partition.manifest.lanes, rank, world_size))
    opened = parquet_shards.fetched_ahead(partial(parquet_shards.open_parquet, partition.uri), files, depth)
    for segment, lane_files in groupby(files, key=lambda file: file.segment):
        lanes = list(lane_files)
        parquets = [next(opened) for _ in lanes]
        first = segment * partition.manifest.segment_steps
        for group in range(parquets[0].num_row_groups):
            following = first + parquets[0].metadata.row_group(group).num_rows // partition.lane_batch
            if following > start_step:
                tables = [parquet.read_row_group(group, use_threads=False) for parquet in parquets]
                yield from batches_of(partition, lanes, tables, first, start_step)
            first = following
