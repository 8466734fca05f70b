"""Serving the labelling page: the address, the links, and the server's life."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from steepest.errors import RunError, UsageError
from steepest.preferences.place import LOOPBACK, Place, bracketed
from steepest.preferences.server import Access, build_app
from steepest.preferences.store import Project
from steepest.preferences.texts import checked_name

PORT = 8765
"""The port where no other is asked for; any free one where it is taken."""


class Link(NamedTuple):
    """A secret address that opens the page for a labeller, or for whoever has it."""

    labeller: str | None
    url: str


class Server:
    """A page that is about to be served: its address is taken, its links are known.

    Args:      live: says how far the run is that asks while it trains; see ``server.build_app``
    """

    def __init__(self, project: Project, place: Place, *, live: Callable[[], dict[str, Any]] | None = None) -> None:
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
            Link(name, f"{scheme}://{bracketed(shown)}:{port}/#token={token}") for token, name in tokens.items()
        ]
        own = LOOPBACK if place.is_local else frozenset[str]()
        hosts = own | {name.lower() for name in (place.host, *place.names)}
        self._running: Any = None
        self.app = build_app(project, Access(tokens, hosts, secure=place.certificate is not None), live=live)

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
