"""Which processes of a run have ended: each is connected to the first one, and the system closes this at its end.

Unlike missing messages, this does not mistake a process that is slow or stopped for one that has ended.
"""

import socket
from contextlib import suppress

KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A machine that does not answer for a minute is lost; its system answers even if the process is stopped."""


class Liveness:
    """The connections of the other processes, in the first one.

    Attributes:
        port: at which it accepts them, on every address of its machine.
    """

    def __init__(self) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self.server = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        self.server.setblocking(False)
        self.port: int = self.server.getsockname()[1]
        self.ranks: dict[socket.socket, int | None] = {}

    def ended(self) -> set[int]:
        """Returns the ranks of processes that have ended since the last call."""
        with suppress(BlockingIOError):
            while True:
                connection = self.server.accept()[0]
                connection.setblocking(False)
                keep_alive(connection)
                self.ranks[connection] = None
        ranks = set()
        for connection in [*self.ranks]:
            if self._is_closed(connection):
                ranks.add(self.ranks.pop(connection))
                connection.close()
        return {rank for rank in ranks if rank is not None}

    def _is_closed(self, connection: socket.socket) -> bool:
        """Whether the other end is closed; reads the rank that it sends first."""
        try:
            received = connection.recv(4)
        except BlockingIOError:
            return False
        except OSError:  # its machine was lost
            return True
        if received:
            self.ranks[connection] = int.from_bytes(received)
        return not received

    def close(self) -> None:
        """Close all connections."""
        for connection in (self.server, *self.ranks):
            connection.close()


def connect(host: str, port: int, rank: int) -> socket.socket:
    """Connect the process of this rank to the first one; the connection ends with the process, unless it is closed.

    Args:
        host: of the first process.
        port: that of its `Liveness`.
        rank: of this process.
    Raises:
        OSError: if the first process cannot be reached.
    """
    connection = socket.create_connection((host, port), 30)
    connection.sendall(rank.to_bytes(4))
    return connection


def keep_alive(connection: socket.socket) -> None:
    """Let the system report a connection as closed once the other machine is lost, as `KEEPALIVE` says."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if option := getattr(socket, name, None):  # macOS has other names
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
