"""Pictures from other servers: public addresses only, whatever a name or a redirect says."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from xtuner.errors import XTunerError
from xtuner.log import get_logger

_SECONDS = 10.0
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_HEADERS = [("User-Agent", "mg-llava"), ("Accept", "image/*"), ("Accept-Encoding", "identity"), ("Connection", "close")]
REFUSED = (
    "the picture's address cannot be fetched: expected an http(s) address of a public server that answers with a "
    "picture, in time and within the size limit."
)
"""Of all refusals, so that nobody learns from them what this machine can reach; the log has the reason."""

Address = str
Resolve = Callable[[str, int], Sequence[Address]]


class RefusedError(Exception):
    """Why an address is not fetched; for the log."""


def fetch(url: str, max_bytes: int, hosts: Iterable[str] = (), backend: httpcore.NetworkBackend | None = None) -> bytes:
    """Returns what stands at an address.

    Args:
        url: http or https, on the protocol's own port.
        max_bytes: of the answer.
        hosts: the only names that may be asked, also after a redirect; empty = all.
        backend: makes the connections; None = a `PublicBackend`, to public addresses only.

    Raises:
        XTunerError: whatever went wrong, in the same words.
    """
    deadline = time.monotonic() + _SECONDS
    try:
        with httpcore.ConnectionPool(network_backend=backend or PublicBackend(deadline), max_connections=1) as pool:
            for _ in range(_MOST_REDIRECTS + 1):
                _check_url(url, frozenset(hosts))
                content, target = _get(pool, url, max_bytes, deadline)
                if target is None:
                    return content
                url = urljoin(url, target)
            raise RefusedError(f"more than {_MOST_REDIRECTS} redirects")
    # what a stranger's server sends may break any layer (h11, TLS, idna, Unicode); one text for all of it
    except Exception as error:
        get_logger().warning("a remote picture was refused: %s: %s", ascii(url[:200]), ascii(str(error)[:200]))
        raise XTunerError(REFUSED) from None


def _check_url(url: str, hosts: frozenset[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise RefusedError("neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise RefusedError("it has a user name")
    if parts.port not in (None, _PORTS[parts.scheme]):
        raise RefusedError("another port than the protocol's own")
    if not parts.hostname:
        raise RefusedError("no host")
    if hosts and parts.hostname.lower().rstrip(".") not in hosts:
        raise RefusedError("not one of the hosts that are allowed")


def _get(pool: httpcore.ConnectionPool, url: str, max_bytes: int, deadline: float) -> tuple[bytes, str | None]:
    """Returns the content and None, or nothing and where it is instead."""
    left = _left(deadline)
    limits = {"timeout": {"connect": left, "read": left, "write": left, "pool": left}}
    with pool.stream("GET", url, headers=_HEADERS, extensions=limits) as answer:
        headers = {name.lower(): value for name, value in answer.headers}
        if answer.status in _REDIRECTS and b"location" in headers:
            return b"", headers[b"location"].decode("latin-1")
        if answer.status != 200:
            raise RefusedError(f"status {answer.status}")
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RefusedError("the answer is compressed")
        content = bytearray()
        for piece in answer.iter_stream():
            content += piece
            if len(content) > max_bytes:
                raise RefusedError(f"more than {max_bytes:,} bytes")
            _left(deadline)
        return bytes(content), None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise RefusedError(f"it took more than {_SECONDS:g} s")
    return left


def resolve(host: str, port: int) -> list[Address]:
    """Returns the addresses of a name, as this machine sees it."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def is_public(address: Address) -> bool:
    """Returns whether an address is one of the open internet: no loopback, private, link-local (clouds' metadata),
    shared, multicast or reserved one, nor an IPv6 address that stands for such an IPv4 one."""
    found = ipaddress.ip_address(address.split("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.is_site_local or int(found) >> 32 == 0:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PublicBackend(httpcore.SyncBackend):
    """Connects to public addresses only. A name is resolved once per connection and the connection goes to the address
    that was looked at, so a name that changes in between (DNS rebinding) gains nothing.

    Args:
        deadline: of all connections together (`time.monotonic`).
        resolver: gives the addresses of a name.
    """

    def __init__(self, deadline: float, resolver: Resolve = resolve) -> None:
        super().__init__()
        self.deadline = deadline
        self.resolver = resolver

    def connect_tcp(self, host: str, port: int, *arguments: Any, **keywords: Any) -> httpcore.NetworkStream:
        """Connects to the first address of `host`, if all of them are public."""
        addresses = self.resolver(host, port)
        _left(self.deadline)
        if not addresses or not all(map(is_public, addresses)):
            raise RefusedError("its address is not public")
        return _Bounded(super().connect_tcp(addresses[0], port, *arguments, **keywords), self.deadline)


class _Bounded(httpcore.NetworkStream):
    """A connection of which no reading or writing goes beyond the deadline, however slowly the other side sends."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self.stream = stream
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Reads what is there."""
        return self.stream.read(max_bytes, _left(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Writes all."""
        self.stream.write(buffer, _left(self.deadline))

    def close(self) -> None:
        """Ends it."""
        self.stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Goes on in TLS; the certificate must be of the name that was asked for."""
        secure = self.stream.start_tls(ssl_context, server_hostname, _left(self.deadline))
        return _Bounded(secure, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        """Returns what httpcore wants to know of it."""
        return self.stream.get_extra_info(info)
