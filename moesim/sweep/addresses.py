"""Where a sweep runs: `local`, `ray`, `ray://auto` or `ray://HOST:PORT`."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Final

from moesim.errors import UsageError

__all__ = ["CONNECT_S", "Address", "check_reachable"]

CLIENT_PORT: Final = 10001
"""The port of a head node at which Ray serves drivers of other machines."""
CONNECT_S: Final = 10.0
"""Seconds after which a head node that does not answer counts as unreachable."""

_HOST: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """An address as the user wrote it, with the host and port of a cluster's head node."""

    text: str
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, text: str) -> Address:
        """Return the address in a text. Raise `UsageError` where it is none."""
        if text in ("local", "ray", "ray://auto"):
            return cls(text)
        match = _HOST.fullmatch(text.removeprefix("ray://")) if text.startswith("ray://") else None
        if match is None or int(match["port"] or 1) not in range(1, 65536):
            raise UsageError(
                f"--on {text}: write local, ray (a cluster of this machine, which is started), "
                "ray://auto (the cluster that this machine belongs to) or ray://HOST:PORT (the "
                f"head node of another; its port is {CLIENT_PORT} unless its owner changed it)"
            )
        return cls(text, match["host"].strip("[]"), int(match["port"] or CLIENT_PORT))

    @property
    def is_local(self) -> bool:
        """Whether runs are simulated by processes of this machine, without Ray."""
        return self.text == "local"

    @property
    def starts(self) -> bool:
        """Whether the cluster is started for the sweep."""
        return self.text == "ray"

    @property
    def for_ray(self) -> str:
        """The address as `ray.init` takes it."""
        return "auto" if not self.host else f"ray://{self.host}:{self.port}"


def check_reachable(address: Address) -> None:
    """Raise `UsageError` where nothing answers at the head node; Ray itself would try for long."""
    if not address.host:
        return
    try:
        socket.create_connection((address.host, address.port), CONNECT_S).close()
    except OSError as error:
        raise UsageError(
            f"--on {address}: nothing answers at {address.host}:{address.port} "
            f"({error.strerror or error}); start the head node with `ray start --head "
            f"--ray-client-server-port {address.port}`, or open this port"
        ) from None
