"""Whether a Ray cluster answers at an address, asked before Ray is started."""

import socket

from offramp.lookup import ParameterError

CONNECT = 5.0
"""Seconds in which an address must accept a connection."""
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of gRPC, the protocol of Ray, begins (RFC 9113, 3.4): the preface and an empty SETTINGS frame."""
SETTINGS = bytes([4])
"""The type of the first frame that a server sends."""


def check_address(address: str, name: str = "address") -> None:
    """Refuse an address where no cluster answers; Ray itself would wait for one.

    Args:
        address: `HOST:PORT`.
        name: of the parameter or variable that it comes from.

    Raises:
        ParameterError: if it is not HOST:PORT, or nothing, or something other than Ray, answers there.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal()) or "://" in address:
        raise ParameterError(f"{name} must be HOST:PORT of the Ray cluster's head, got {address}", "address")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT) as connection:
            connection.sendall(HTTP2)
            if connection.recv(9, socket.MSG_WAITALL)[3:4] != SETTINGS:
                raise OSError("the program at this address is not Ray")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(
            f"{name}={address} does not answer ({reason}): start Ray there, `ray start --head`, or correct it",
            "address",
        ) from None
