"""MongoDB's wire protocol, as far as pymongo speaks it: OP_MSG, and OP_QUERY for the greeting."""

from __future__ import annotations

import socketserver
import struct
from typing import TYPE_CHECKING, Any

import bson

if TYPE_CHECKING:
    from commands import Commands

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
CHECKSUM, MORE_TO_COME = 1, 2  # flags of OP_MSG


class Server(socketserver.ThreadingTCPServer):
    """Answers on this machine's loopback only."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, commands: Commands) -> None:
        super().__init__(("127.0.0.1", port), Connection)
        self.commands = commands


class Connection(socketserver.StreamRequestHandler):
    """One client."""

    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        """Answer until the client goes away."""
        number = 0
        while len(head := self.rfile.read(16)) == 16:
            size, request, _, operation = struct.unpack("<iiii", head)
            body = self.rfile.read(size - 16)
            number += 1
            answer = self._answer(operation, body)
            if answer is not None:
                code, content = answer
                try:
                    self.wfile.write(struct.pack("<iiii", 16 + len(content), number, request, code) + content)
                except OSError:
                    return

    def _answer(self, operation: int, body: bytes) -> tuple[int, bytes] | None:
        run = self.server.commands.run
        if operation == OP_QUERY:
            content = bson.encode(run(parse_query(body)))
            return OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + content
        if operation != OP_MSG:
            raise ValueError(f"operation {operation} of the wire protocol is not known here")
        flags, command = parse_message(body)
        content = bson.encode(run(command))
        return None if flags & MORE_TO_COME else (OP_MSG, struct.pack("<IB", 0, 0) + content)


def parse_query(body: bytes) -> dict[str, Any]:
    """Return the command in an OP_QUERY."""
    place = body.index(b"\0", 4) + 1 + 8
    return bson.decode(body[place : place + struct.unpack_from("<i", body, place)[0]])


def parse_message(body: bytes) -> tuple[int, dict[str, Any]]:
    """Return the flags and the command of an OP_MSG, with the documents that travel beside it."""
    flags = struct.unpack_from("<I", body)[0]
    place, end = 4, len(body) - (4 if flags & CHECKSUM else 0)
    command: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    while place < end:
        kind, size = struct.unpack_from("<Bi", body, place)
        section = body[place + 1 : place + 1 + size]
        if kind == 0:
            command = bson.decode(section)
        else:
            name = section[4 : section.index(b"\0", 4)]
            beside[name.decode()] = bson.decode_all(section[4 + len(name) + 1 :])
        place += 1 + size
    return flags, command | beside
