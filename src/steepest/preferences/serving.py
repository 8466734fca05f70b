"""Serving the labelling page: the address, the links, and the server's life."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from steepest.errors import RunError, UsageError, require
from steepest.preferences.records import checked_name
from steepest.preferences.server import Access, build_app, host_name
from steepest.preferences.store import Project

PORT = 8765
"""The port where no other is asked for; any free one where it is taken."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the page is served, and to whom.

    Raises:    UsageError where that could not be safe, or not work
    Verified:  tests/integration/test_label_server.py::test_places_that_cannot_be_safe_are_refused
    """

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int | None = None
    """Port; None: 8765, or any free one."""
    labellers: tuple[str, ...] = ()
    """Names, each with a link of its own; none: one link, and everybody says who they are."""
    names: tuple[str, ...] = ()
    """Names and addresses besides the host under which browsers reach this machine."""
    certificate: Path | None = None
    """TLS certificate, as a PEM file."""
    key: Path | None = None
    """Its private key, as a PEM file."""

    def __post_init__(self) -> None:
        require(self.port is None or 0 <= self.port < 2**16, "port", self.port, "a number below 65536")
        for name in (self.host, *self.names):
            require(host_name(_bracketed(name)) != "", "the host", name, "a name or an address, without port")
        if (self.certificate is None) != (self.key is None):
            raise UsageError("TLS needs both a certificate and its key")
        found = [checked_name(name) for name in self.labellers]
        if len(set(found)) < len(found):
            raise UsageError(f"two labellers have the same name: {', '.join(found)}")
        if not self.is_local and not self.labellers:
            raise UsageError(
                f"{self.host} is reached from other machines: say who may label (--labellers ana ben); each gets a link"
            )
        if self.is_wildcard and not self.names:
            raise UsageError(
                f"{self.host} is every address of this machine: say under which name browsers reach it (--names NAME)"
            )

    @property
    def is_local(self) -> bool:
        """Whether other machines cannot reach the address."""
        if self.host == "localhost":
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    @property
    def is_wildcard(self) -> bool:
        """Whether the address stands for all of the machine's."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_unspecified
        return False

    @property
    def is_exposed(self) -> bool:
        """Whether what is sent can be read on its way: other machines reach it, and it is not encrypted."""
        return not self.is_local and self.certificate is None


class Link(NamedTuple):
    """A secret address that opens the page for a labeller, or for whoever has it."""

    labeller: str | None
    url: str


class Server:
    """A page that is about to be served: its address is taken, its links are known."""

    def __init__(self, project: Project, place: Place) -> None:
        for file in (place.certificate, place.key):
            if file is not None and not file.is_file():
                raise UsageError(f"there is no file {file}")
        self.project = project
        self.place = place
        self.socket = _listen(place)
        port = self.socket.getsockname()[1]
        who: Sequence[str | None] = place.labellers or (None,)
        tokens = {secrets.token_urlsafe(32): None if name is None else checked_name(name) for name in who}
        scheme = "http" if place.certificate is None else "https"
        shown = place.names[0] if place.is_wildcard else place.host
        # After the #, which browsers send to nobody: it is in no log.
        self.links = [
            Link(name, f"{scheme}://{_bracketed(shown)}:{port}/#token={token}") for token, name in tokens.items()
        ]
        own = LOOPBACK if place.is_local else frozenset[str]()
        hosts = own | {name.lower() for name in (place.host, *place.names)}
        self._running: Any = None
        self.app = build_app(project, Access(tokens, hosts, secure=place.certificate is not None))

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM, whose handlers then run as ever."""
        import uvicorn

        config = uvicorn.Config(
            self.app,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            ssl_certfile=None if self.place.certificate is None else str(self.place.certificate),
            ssl_keyfile=None if self.place.key is None else str(self.place.key),
        )
        self._running = uvicorn.Server(config)
        try:
            self._running.run(sockets=[self.socket])
        finally:
            self.socket.close()

    def stop(self) -> None:
        """End ``run`` from another thread."""
        if self._running is not None:
            self._running.should_exit = True


def _listen(place: Place) -> socket.socket:
    """Take the address; the default port gives way where it is taken."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    ports = [PORT, 0] if place.port is None else [place.port]
    for port in ports:
        # Named as TCP, or asyncio leaves Nagle's algorithm on: the second part of every answer would wait 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((place.host, port))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE and port != ports[-1]:
                continue
            why = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise RunError(f"cannot listen on {place.host} port {port}: {why}") from error
        return listening
    raise AssertionError


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
