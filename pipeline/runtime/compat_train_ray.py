"""Ray Train's controller in the driver's own process, and nothing started that a run does not use: interfaces
that are not documented. tests/runtime/test_ray_internals.py says what is lost when one of them moves.

As it comes, Ray Train starts its controller and four helpers as processes, one after the other, and each
imports Ray Train before the workers may begin. Controller and workers end with the driver in either case.
"""

import asyncio
import contextlib
import os
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup


class _Group(WorkerGroup):
    """Workers of a controller that is no actor."""

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,  # asked for checkpoints that were reported: ours are not
                    **{name: values[rank] for name, values in train_context_args.items()},
                )
                for rank, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _GroupOfOwnCluster(_Group):
    """Workers of a cluster that has this process's environment already: one given to them would keep them out
    of the processes that the cluster has started."""

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return dict(custom_runtime_env)


class _Controller(TrainController):
    worker_group_cls = _Group


class _ControllerOfOwnCluster(TrainController):
    worker_group_cls = _GroupOfOwnCluster


class _Unasked(FixedScalingPolicy):
    """As many workers as wanted, of a cluster that never grows: no autoscaler is asked for them."""

    def after_controller_start(self, train_run_context: Any) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...


class Trainer(TorchTrainer):
    """A `TorchTrainer` without datasets whose `fit` controls the workers from this process."""

    def _create_default_callbacks(self) -> list[Any]:
        # A process that deals out Ray Data's shards, where each worker reads rows of its own; and one that
        # frees the room of a controller that died, which the end of its driver does. A trial of a sweep may
        # end before its driver.
        unused: tuple[type, ...] = (DatasetsCallback,)
        if ray.get_runtime_context().get_actor_id() is None:
            unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        own = not os.environ.get("RAY_ADDRESS")
        if own and isinstance(options["scaling_policy"], FixedScalingPolicy):
            options["scaling_policy"] = _Unasked(options["scaling_policy"].scaling_config)
        return asyncio.run(_controlled(_ControllerOfOwnCluster if own else _Controller, options))


async def _controlled(kind: type[TrainController], options: dict[str, Any]) -> Any:
    """The result of a run; one that is left by an exception leaves no worker behind."""
    controller = kind(**options)
    try:
        await controller.run()
        return controller.get_result()
    except BaseException:
        if group := controller.get_worker_group():
            with contextlib.suppress(Exception):
                group.abort()
        raise
