"""Stands between a server and those who connect to it, so that a test can cut them off without stopping the server."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Relay:
    """A port of this machine that leads to a server.

    Parameters
    ----------
    host
        Of the server.
    port
        Its port.
    """

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.port = 0
        self.ends: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        """Let clients through, on the port of before if there was one."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self.ends = [listener]
        self._run(self._accept, listener)

    def cut(self) -> None:
        """Break all connections and take no new ones."""
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.threads = []

    def _accept(self, listener: socket.socket) -> None:
        with listener, suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self.server)
                self.ends += [client, server]
                self._run(self._carry, client, server)
                self._run(self._carry, server, client)

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with source, suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def _run(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()
