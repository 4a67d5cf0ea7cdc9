"""Who may ask a server."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: names under which the server is reached besides this machine's own; ``*`` = any.
        api_key: that requests to ``/v1`` must bring; None = nobody needs one.
    """

    hosts: tuple[str, ...] = ()
    api_key: str | None = None

    def takes_host(self, name: str | None) -> bool:
        """Returns whether the server is called by this name: else a page of somebody else's may stand behind it."""
        named = {host.lower().strip("[]") for host in self.hosts}
        return "*" in named or (name is not None and name.lower() in named.union(LOOPBACK))
