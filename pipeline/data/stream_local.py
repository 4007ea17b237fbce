"""The retain stream read with plain pyarrow: no Ray, for torchrun, tests and comparison."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from pipeline.data import shards
from pipeline.data.partition import Partition
from pipeline.data.rows import Batch
from pipeline.data.stream import assemble, files_to_read, lanes_of

THREADS = 2


def retain_stream(partition: Partition, rank: int, world: int, start_step: int = 0) -> Iterator[Batch]:
    """The rank's part of each global batch from `start_step` on. The next segment is read while one is consumed."""
    files = files_to_read(partition, rank, world, start_step)
    ahead = len(lanes_of(partition.manifest.lanes, rank, world))

    def tables() -> Iterator[pa.Table]:
        with ThreadPoolExecutor(THREADS) as pool:
            reading: deque[Future[pa.Table]] = deque()
            for file in files:
                reading.append(pool.submit(shards.read, partition.uri, file, check_digest=False))
                if len(reading) > ahead:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()

    return assemble(partition, files, tables(), start_step)
