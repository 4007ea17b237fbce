"""Forget and exchange rows read from their files: the weights of a run that held them in memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from runs import run_config, run_inputs
from tiny import SIDE

from models.weights import weights_digest
from pipeline.data import parquet_shards
from pipeline.data.batch import Side
from pipeline.data.cycle import Cycle
from pipeline.data.decode import read_batch
from pipeline.data.stored_rows import open_rows
from pipeline.data.units import Units
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Hooks, unlearn
from pipeline.training.step import Inputs
from pipeline.unlearning.noising import exchange_rows

SHAPE = (1, SIDE, SIDE)
CONFIG = run_config(**{"method.name": "uno_s", "method.targets": "data"})


def inputs_with(forget: Side, exchange: Side) -> Inputs:
    inputs = run_inputs(CONFIG)
    shown = exchange_rows(exchange, CONFIG.request.exchange_classes)
    streams = replace(
        inputs.streams,
        forget=Cycle(forget, CONFIG.seed, "forget"),
        exchange=Cycle(shown, CONFIG.seed, "exchange"),
    )
    return replace(inputs, streams=streams)


def test_rows_read_as_they_are_asked_for_train_the_same_weights(tmp_path: Path) -> None:
    random, files = np.random.default_rng(0), []
    for label in (1, 2):
        ids = [f"{label}-{number}" for number in range(11)]
        tensors = [parquet_shards.tensor_array(random.random((11, *SHAPE)), "latent") for _ in range(2)]
        columns = [pa.array(ids), pa.array([label] * 11, pa.int32()), *tensors]
        table = pa.table(columns, schema=parquet_shards.schema("latent", SHAPE))
        place = {"label": label, "split": "train"}
        files.append(parquet_shards.write(str(tmp_path), f"{label}", [table], "latent", SHAPE, **place))
    held, stored = (
        [way(str(tmp_path), [file], "latent", SHAPE, Units(0.5)) for file in files]
        for way in (read_batch, open_rows)
    )
    saved: list[dict[str, bytes]] = []
    hooks = Hooks(save=lambda checkpoint: saved.append(checkpoint.to_files()))
    digest = weights_digest(unlearn(inputs_with(*held)).trained)
    assert weights_digest(unlearn(inputs_with(*stored), hooks=hooks).trained) == digest
    start = Checkpoint.from_files(saved[1])
    assert 0 < start.iteration < CONFIG.optim.max_steps
    assert weights_digest(unlearn(inputs_with(*stored), start).trained) == digest
