"""A supervised pool of labelling processes: one core each, a time limit per label, and no label harms another."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from makers.documents import LabelKind, LabelStatus
from makers.errors import LabelError
from makers.labelling.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from makers.config import AseLabelConfig
    from makers.labelling.compute import Task

logger = logging.getLogger(__name__)

START_LIMIT = 300.0  # s to import a calculator from a slow file system
FAILED_STARTS = 3  # workers in a row that die before their first label: nothing will change by trying again
POLL = 1.0  # s between looks at workers that say nothing
REPORT_EVERY = 30.0  # s between lines in the log
LOG_TAIL = 300  # characters of a dead worker's output that go into the message
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _Worker:
    """One process, its connection and what it is doing."""

    def __init__(self, config: AseLabelConfig, scratch: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="worker-", dir=scratch))
        self.config = config
        self.task: Task | None = None
        self.ready = False
        self.connection, theirs = Pipe()
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with (self.folder / "worker.log").open("wb") as log, theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "makers.labelling.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
                start_new_session=True,  # Ctrl-C is the parent's business, and killing reaches the code's own children
            )
        self._begin(START_LIMIT)
        pythonpath = os.environ.get("PYTHONPATH", "")
        self._send({"calculator": config.calculator, "settings": config.settings, "pythonpath": pythonpath})

    def assign(self, task: Task) -> None:
        """Give it a label to calculate."""
        self.task = task
        relaxation = task.kind == LabelKind.RELAXATION
        self._begin(self.config.relax_timeout_s if relaxation else self.config.timeout_s)
        self._send(asdict(task))

    def receive(self) -> dict[str, Any] | None:
        """Return a message, or None when there is none; raises EOFError when the process is gone."""
        if self.connection.poll():
            return json.loads(self.connection.recv_bytes())  # type: ignore[no-any-return]
        if self.process.poll() is not None:
            raise EOFError
        return None

    @property
    def is_late(self) -> bool:
        """Whether the time for what it is doing is over."""
        return (self.task is not None or not self.ready) and time.monotonic() > self.deadline

    def obituary(self) -> str:
        """Return how the process ended, with the end of its output."""
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        with (self.folder / "worker.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
            tail = log.read().decode(errors="replace").strip()
        return f"the worker {how}" + (f": ...{tail}" if tail else "")

    def kill(self) -> None:
        """End the process and all that it started, and remove its folder."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def outcome(self, status: LabelStatus, message: str) -> Outcome:
        """Return the outcome of a label that the process did not survive."""
        if self.task is None:
            raise LabelError(f"a labelling process failed while it was idle: {message}")
        seconds = time.monotonic() - self.began
        provenance = {"versions": {}, "host": platform.node(), "started": self.started, "seconds": seconds}
        return Outcome(self.task.label_id, status, message, self.task.positions, self.task.cell, provenance=provenance)

    def _begin(self, limit: float) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.began = time.monotonic()
        self.deadline = self.began + limit

    def _send(self, message: dict[str, Any]) -> None:
        # a process that has just died is noticed when its answer is awaited
        with contextlib.suppress(BrokenPipeError):
            self.connection.send_bytes(json.dumps(message).encode())


class LabelPool:
    """Labels by several processes at once; leaving the ``with`` block ends them, whatever the reason.

    Parameters
    ----------
    config
        Calculator, number of workers, time limits.
    folder
        Where the workers' scratch folders are made; removed at the end.
    """

    def __init__(self, config: AseLabelConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> Self:
        """Start nothing yet: processes start when there are labels."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes at once."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Calculate labels, and hand each out as soon as it is finished.

        Parameters
        ----------
        tasks
            What to calculate.

        Yields
        ------
        Outcome
            One per task, in the order in which they finish.

        Raises
        ------
        LabelError
            If the processes cannot start at all.
        """
        waiting, n_done, next_report = deque(tasks), 0, time.monotonic() + REPORT_EVERY
        while n_done < len(tasks):
            self._staff(waiting, len(tasks) - n_done)
            wait([worker.connection for worker in self._workers], timeout=POLL)
            for worker in list(self._workers):
                outcome = self._attend(worker)
                if outcome is not None:
                    n_done += 1
                    yield outcome
            if time.monotonic() > next_report:
                logger.info("labels: %d of %d done", n_done, len(tasks))
                next_report = time.monotonic() + REPORT_EVERY

    def _staff(self, waiting: deque[Task], n_left: int) -> None:
        while len(self._workers) < min(self.config.workers, n_left):
            self._workers.append(_Worker(self.config, self.folder))
        for worker in self._workers:
            if waiting and worker.ready and worker.task is None:
                worker.assign(waiting.popleft())

    def _attend(self, worker: _Worker) -> Outcome | None:
        try:
            message = worker.receive()
        except (EOFError, OSError):
            return self._bury(worker, LabelStatus.CRASHED, worker.obituary())
        if message is None:
            if not worker.is_late:
                return None
            limit = worker.deadline - worker.began
            return self._bury(worker, LabelStatus.TIMEOUT, f"not finished after {limit:g} s")
        if "broken" in message:
            raise LabelError(message["broken"])
        worker.ready = True
        self._failed_starts = 0
        if "outcome" not in message:
            return None
        worker.task = None
        fields = message["outcome"]
        return Outcome(**fields | {"status": LabelStatus(fields["status"])})

    def _bury(self, worker: _Worker, status: LabelStatus, message: str) -> Outcome | None:
        outcome = worker.outcome(status, message) if worker.task is not None else None
        worker.kill()
        self._workers.remove(worker)
        if outcome is not None:
            return outcome
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise LabelError(f"labelling processes do not start: {message}")
        return None
