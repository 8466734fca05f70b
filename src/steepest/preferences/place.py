"""Where the labelling page is served, and to whom; checked without what serves it."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from steepest.errors import UsageError, require
from steepest.fields import Checked, Whole
from steepest.preferences.texts import checked_name

EXPOSED = (
    "WARNING: the page is served to other machines without encryption. Links, texts and judgements can be read and "
    "changed on their way. Give --certificate and --key, or reach this machine by ssh -L."
)
"""Said where a page is ``is_exposed``."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Place(Checked):
    """Where the page is served, and to whom.

    Raises:    UsageError where that could not be safe, or not work
    Verified:  tests/integration/test_label_server.py::test_places_that_cannot_be_safe_are_refused
    """

    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own is reached from others, and needs labellers."""
    port: Whole | None = None
    """Port (default: 8765, or any free one)."""
    labellers: tuple[str, ...] = ()
    """Names, each with a link of its own (default: one link, and everybody says who they are)."""
    names: tuple[str, ...] = ()
    """Names and addresses besides the host under which browsers reach this machine (default: none)."""
    certificate: Path | None = None
    """TLS certificate, as a PEM file (default: none)."""
    key: Path | None = None
    """Its private key, as a PEM file (default: none)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.port is None or self.port < 2**16, "port", self.port, "a number below 65536")
        for name in (self.host, *self.names):
            require(host_name(bracketed(name)) != "", "the host", name, "a name or an address, without port")
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


def host_name(host: str) -> str:
    """Return the name or address of a Host header, without port and brackets.

    Verified:  tests/integration/test_label_server.py::test_hosts_are_read_without_their_port
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?", host)
    return "" if match is None else (match[1] or match[2]).lower()


def bracketed(host: str) -> str:
    """Return a host as an address names it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
