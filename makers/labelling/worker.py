"""The worker process of the pool: ``python -m makers.labelling.worker FD``.

It is a program of its own, not a fork: a calculator that dies, hangs or prints takes nothing with it, and the script
that started the search is not imported a second time.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from makers.documents import LabelKind
from makers.errors import ConfigError
from makers.labelling.calculators import load_factory
from makers.labelling.compute import Labeller, Task

ORPHAN_POLL = 0.5  # s between looks at whether the parent is still there


def main(fd: int) -> None:
    """Answer each task until the parent closes the connection.

    Parameters
    ----------
    fd
        File descriptor of this end of the connection.
    """
    os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
    faulthandler.enable()
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    with Connection(fd) as connection:
        first = json.loads(connection.recv_bytes())
        os.environ["PYTHONPATH"] = first["pythonpath"]  # ours was for this interpreter, not for programs of calculators
        labeller = Labeller(first["calculator"], first["settings"])
        try:
            load_factory(labeller.calculator)
        except ConfigError as exc:
            _send(connection, {"broken": str(exc)})
            return
        _send(connection, {"ready": True})
        while True:
            try:
                task = json.loads(connection.recv_bytes())
            except EOFError:
                return
            outcome = labeller.label(Task(**task | {"kind": LabelKind(task["kind"])}))
            _send(connection, {"outcome": asdict(outcome)})


def _send(connection: Connection[Any, Any], message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _die_with_parent(parent: int) -> None:
    # a killed search must not leave labels running; programs started by the calculator are of the same group
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
