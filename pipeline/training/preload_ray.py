"""Imported by the processes of a local cluster as they start, while the driver is busy with other things:
what a worker of the training would import once it is one."""

import gc

gc.disable()  # a fifth of what these imports take is collecting garbage that is none

import ray.train.torch  # noqa: E402, F401

import pipeline.training.worker  # noqa: E402, F401

gc.freeze()
gc.enable()
