"""A test double for MongoDB: mongomock behind the wire protocol, with a journal that survives kill -9.

It is not MongoDB and says nothing about MongoDB's performance, query plans, replica sets, transactions, retryable
writes, authentication or TLS. It lets programs in several processes share a LaunchPad and a job store in tests.
Started as ``python tests/cluster/wire --port 27117 --folder db``; answers on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import engine
from commands import LARGEST, Commands
from protocol import Server


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--folder", type=Path, help="where the journal lies; without it everything is forgotten")
    parser.add_argument("--largest", type=int, default=LARGEST, help="documents of more bytes are refused")
    asked = parser.parse_args()
    engine.install()
    with Server(asked.port, Commands(asked.folder, asked.largest)) as server:
        sys.stdout.write(f"listening on {server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
