"""How much of a TCP connection's data the peer's kernel has acknowledged. No await, no clock."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_BYTES_ACKED = slice(120, 128)
"""``tcpi_bytes_acked`` of ``struct tcp_info`` (linux/tcp.h): bytes that the peer acknowledged, plus one for the SYN."""


def acknowledged_bytes(sock: socket.socket) -> int | None:
    """Bytes that the peer's kernel acknowledged; None where the system does not report it. Only Linux does."""
    if _TCP_INFO is None:
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_ACKED.stop)
    count = int.from_bytes(info[_BYTES_ACKED], sys.byteorder) if len(info) == _BYTES_ACKED.stop else 0
    return count - 1 if count else None


def nothing_acknowledged(sock: socket.socket) -> bool:
    """Whether the peer's kernel acknowledged no byte. Only Linux reports it; only Linux drops data in this state."""
    return acknowledged_bytes(sock) == 0


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Sent bytes that the peer has not acknowledged yet; 0 where the system does not report it."""
    try:
        count = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(count, sys.byteorder)
