"""Serving a desk: on loopback, or elsewhere by TLS or behind a proxy that has it."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from medfm_rl.data.files import cannot_be_read
from medfm_rl.errors import ConfigError
from medfm_rl.service.app import LOOPBACK_NAMES, create_app
from medfm_rl.service.desk import Desk
from medfm_rl.service.request import DeskRequest
from medfm_rl.settings.openid import is_loopback

_LOG = logging.getLogger(__name__)
_ONLY_OWNER = 0o600
_SECONDS_TO_END = 5
_UNDER = re.compile(r"(/[A-Za-z0-9._-]*[A-Za-z0-9_-])+")
_OWN_PATHS = frozenset({"api", "health", "learn", "login", "logout", "metrics", "ready", "static"})
"""By which a request that a proxy has shortened is told from one that it has not."""


@dataclass(frozen=True)
class Address:
    """Where a desk is served.

    Attributes:
        host: Name or address to listen at.
        port: Port; 0 for any that is free.
        certificate: File of the TLS certificate.
        key: File of its key.
        behind_proxy: Address of the proxy that has TLS.
        names: Further names by which the service is called.
        token_file: File that keeps the token from one start to the next; made where it is not there.
        under: The path that a proxy serves it under, such as `/desk`; empty where it has a name of its own.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: str | None = None
    names: tuple[str, ...] = ()
    token_file: Path | None = None
    under: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--certificate and --key go together: give both files, or none")
        for path in (self.certificate, self.key):
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(f"{path}: there is no such file, or it may not be read; give a file in PEM format")
        if self.under and (not _UNDER.fullmatch(self.under) or self.under.split("/")[1] in _OWN_PATHS):
            raise ConfigError(
                f"--under {self.under}: must be a path such as /desk, of letters, digits, . _ and -, without a "
                f"slash at its end, that does not begin as one of the desk's own ({', '.join(sorted(_OWN_PATHS))})"
            )
        if not self.is_loopback and self.certificate is None and self.behind_proxy is None:
            raise ConfigError(
                f"--host {self.host}: others on the network could read along; give --certificate and --key for TLS, or "
                "--behind-proxy with the address of a proxy that has it"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can ask."""
        return is_loopback(self.host)

    @property
    def hosts(self) -> frozenset[str]:
        """Names by which the service answers."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset({*LOOPBACK_NAMES, own.lower(), *(name.lower() for name in self.names)})


def serve(request: DeskRequest, address: Address, tell: Callable[[str], None]) -> None:
    """Serves a desk until it is interrupted.

    Args:
        request: What is reviewed, and where decisions go.
        address: Where it listens.
        tell: Told the address to open, with the token.

    Raises:
        UserError: The store or the folders cannot be used, or the port is taken.
    """
    token = _token(address.token_file)
    desk = Desk(request, token)
    listening = _listen(address)
    port = listening.getsockname()[1]
    scheme = "http" if address.certificate is None else "https"
    shown = f"[{address.host}]" if ":" in address.host else address.host
    place = f"{scheme}://{shown}:{port}{address.under}"
    left = sum(not desk.work.is_done(item) for item in desk.catalogue.items.values())
    tell(f"{left} of {len(desk.catalogue.items)} items are left to review; decisions go to {desk.database.store.where}")
    tell(f"Desk: {place}/" if desk.access.with_users else f"Desk: {place}/login?token={token}")
    app = create_app(
        desk,
        address.hosts,
        https_only=address.behind_proxy is not None,
        by_tls=address.certificate is not None,
        under=address.under,
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        # The address of the login has the token in it.
        access_log=False,
        server_header=False,
        proxy_headers=address.behind_proxy is not None,
        forwarded_allow_ips=address.behind_proxy,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        if desk.scorer is not None:
            desk.scorer.close()
        desk.database.close()


def _listen(address: Address) -> socket.socket:
    """The socket of an address.

    Raises:
        ConfigError: It is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((address.host, address.port))
        # A second desk at the same port is told now, and not after it has printed its address.
        found.listen(socket.SOMAXCONN)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {address.port}: another program listens there, perhaps another desk; end that one, or give "
                "another port (0 for any that is free)"
            ) from error
        raise ConfigError(
            f"--host {address.host} --port {address.port}: cannot be listened at ({error.strerror}); give an address "
            "of this machine, and a port above 1023"
        ) from error
    return found


def _token(path: Path | None) -> str:
    """The token of a desk: of its file, which nobody else may read, or a new one.

    Raises:
        ConfigError: Others may read the file, or it holds none.
        DataError: It cannot be read.
    """
    if path is None:
        return secrets.token_urlsafe(32)
    if not path.exists():
        made = secrets.token_urlsafe(32)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _ONLY_OWNER)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{made}\n")
        return made
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others may read the token; chmod 600 {path}")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise cannot_be_read(path, error) from error
