"""Relax with several processes of one node, each with its own structures in flight."""

from __future__ import annotations

import copy
import os
import queue
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

from acnn.errors import NumericalError
from acnn.relax.engine import Engine
from acnn.relax.memory import affordable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import SpawnContext, SpawnProcess

    import numpy as np

    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike
    from acnn.relax.pool import Job
    from acnn.relax.result import Relaxed

PARCEL = 16
"""Structures sent to a process at a time."""

WAITING = 2048
"""Parcels of results that wait for the caller, at most."""

PATIENCE = 5.0
"""Time between two looks at whether the processes live, s."""


@dataclass(frozen=True)
class Failure:
    """An exception of a worker process, on its way to the caller."""

    error: Exception


class Tray:
    """The queues between the caller and its worker processes.

    Parameters
    ----------
    context
        Where processes come from.
    workers
        How many there are.
    """

    def __init__(self, context: SpawnContext, workers: int) -> None:
        self.todo: multiprocessing.Queue[list[Job] | None] = context.Queue(maxsize=8 * workers)
        self.done: multiprocessing.Queue[list[Relaxed] | Failure | None] = context.Queue(maxsize=WAITING)

    def jobs(self) -> Iterator[Job]:
        """Give the jobs meant for this process until there are no more."""
        while (parcel := self.todo.get()) is not None:
            yield from parcel


def relax_parallel(
    jobs: Iterator[Job], potential: PotentialLike, settings: RelaxConfig, table: np.ndarray
) -> Iterator[Relaxed]:
    """Relax with several processes.

    Parameters
    ----------
    jobs
        Structures; read as the processes ask for them.
    potential
        Must survive pickling.
    settings
        Convergence, steps, guards, and the number of processes; with several GPUs each takes one in turn.
    table
        Minimum distances by atomic number, shape (119, 119), Å.

    Yields
    ------
    Relaxed
        Results, in the order in which they finish.

    Raises
    ------
    NumericalError
        If a process dies.
    """
    context = multiprocessing.get_context("spawn")
    workers = settings.workers
    tray = Tray(context, workers)
    devices = _devices(torch.device(potential.device), workers)
    if devices[0].type == "cuda":
        potential = _moved(copy.deepcopy(potential), torch.device("cpu"))  # memory of a GPU cannot be sent
    share = -(-workers // len(set(devices)))
    processes = [
        context.Process(target=_work, args=(tray, potential, settings, table, device, share), daemon=True)
        for device in devices
    ]
    for process in processes:
        process.start()
    stop = threading.Event()
    feeder = threading.Thread(target=_feed, args=(tray, jobs, workers, stop), daemon=True)
    feeder.start()
    try:
        yield from _collect(tray, processes)
    finally:
        stop.set()
        feeder.join()
        tray.todo.cancel_join_thread()  # what nobody takes any more would keep this process from ending
        for process in processes:
            process.terminate()
            process.join()


def _collect(tray: Tray, processes: list[SpawnProcess]) -> Iterator[Relaxed]:
    """Gather results until every process has said that it is done."""
    working = len(processes)
    while working:
        ended = [process.exitcode for process in processes if process.exitcode is not None]
        try:
            item = tray.done.get(timeout=PATIENCE)
        except queue.Empty:
            silent = len(ended) > len(processes) - working
            if silent or any(ended):  # all that a process says is in the queue when it ends
                raise NumericalError(f"a relaxing process ended with exit code {max(ended, key=abs)}") from None
            continue
        if isinstance(item, Failure):
            raise item.error
        if item is None:
            working -= 1
        else:
            yield from item


def _feed(tray: Tray, jobs: Iterator[Job], workers: int, stop: threading.Event) -> None:
    """Send the jobs in parcels, then an end to each process; an error of the input travels to the caller."""
    try:
        parcel: list[Job] = []
        for job in jobs:
            parcel.append(job)
            if len(parcel) == PARCEL:
                if not _put(tray.todo, parcel, stop):
                    return
                parcel = []
        if parcel and not _put(tray.todo, parcel, stop):
            return
    except Exception as error:  # noqa: BLE001 - the caller raises it again
        _put(tray.done, Failure(error), stop)
        return
    for _ in range(workers):
        _put(tray.todo, None, stop)


def _put(line: multiprocessing.Queue[Any], item: object, stop: threading.Event) -> bool:
    """Wait for room in a queue; false if the caller has gone."""
    while not stop.is_set():
        try:
            line.put(item, timeout=0.2)
        except queue.Full:
            continue
        return True
    return False


def _devices(device: torch.device, workers: int) -> list[torch.device]:
    """Give each process a device: that of the potential, or one GPU in turn."""
    if device.type != "cuda":
        return [device] * workers
    return [torch.device("cuda", rank % torch.cuda.device_count()) for rank in range(workers)]


def _moved(potential: PotentialLike, device: torch.device) -> PotentialLike:
    """Move a potential that can be moved."""
    move = getattr(potential, "to", None)
    moved: PotentialLike = potential if move is None else move(device)
    return moved


def _work(
    tray: Tray, potential: PotentialLike, settings: RelaxConfig, table: np.ndarray, device: torch.device, share: int
) -> None:
    """Relax what comes in the queue, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller hears it too, and ends this process
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)
    try:
        if device.type == "cuda":
            potential = _moved(potential, device)
        limit = settings.batch_atoms or affordable(device, share)
        engine = Engine(potential, settings.model_copy(update={"batch_atoms": limit}), table)
        parcel: list[Relaxed] = []
        for result in engine.run(tray.jobs()):
            parcel.append(result)
            if len(parcel) == PARCEL:
                tray.done.put(parcel)
                parcel = []
        if parcel:
            tray.done.put(parcel)
    except Exception as error:  # noqa: BLE001 - the caller raises it again
        tray.done.put(Failure(error))
        return
    tray.done.put(None)


def _follow() -> None:
    """End with the caller's process, however that ended; the queues would keep this one waiting for ever."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)
