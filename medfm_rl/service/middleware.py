"""What holds for every request and answer: headers, the size of what is sent, and by which name it is called."""

from __future__ import annotations

import json
from typing import final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Without any referrer browsers do not say either where a form comes from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_READS = ("GET", "HEAD", "OPTIONS")
_HSTS = "max-age=31536000"


class _TooLargeError(Exception):
    """A body beyond the limit, found while it is read."""


@final
class Guard:
    """Puts security headers on every answer, and refuses bodies that are too large and requests by foreign names.

    A page of another site can have a browser ask a service on loopback by a name of its own (DNS rebinding); by that
    name nothing is answered.

    Args:
        app: The service.
        hosts: Names by which it is called.
        most_body: Bytes of a body at most.
        https_only: Whether a proxy has to say that it was asked by https.
        under: The path that the service lies under for browsers, such as `/desk`; empty where it has a name of its own.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], most_body: int, https_only: bool = False, under: str = ""
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._most_body = most_body
        self._https_only = https_only
        self._under = under

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._placed(scope)
        secure = scope.get("scheme") == "https"
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # Pixels and names of patients stay out of the caches of browsers.
                kept = scope["path"].startswith(f"{self._under}/static/")
                headers.setdefault("Cache-Control", "no-cache" if kept else "no-store")
                if secure:
                    headers["Strict-Transport-Security"] = _HSTS
            await send(message)

        headers = Headers(scope=scope)
        refused = self._refused(scope, headers, secure)
        if refused is not None:
            await _answer(send_with_headers, *refused)
            return
        read = 0

        async def receive_some() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._most_body:
                    raise _TooLargeError
            return message

        try:
            await self._app(scope, receive_some, send_with_headers)
        except _TooLargeError:
            if begun:
                raise
            await _answer(send_with_headers, *self._too_large())

    def _placed(self, scope: Scope) -> Scope:
        """The request with its whole path, whether a proxy has taken off what the service lies under or not."""
        if not self._under:
            return scope
        path = "/" if scope["path"] == self._under else scope["path"]
        whole = path if path.startswith(f"{self._under}/") else f"{self._under}{path}"
        return {**scope, "root_path": self._under, "path": whole}

    def _refused(self, scope: Scope, headers: Headers, secure: bool) -> tuple[int, str, str, str] | None:
        if not self._knows(headers.get("host", "")):
            return (
                400,
                "host",
                "the service is not called by that name",
                "call it by the address that the command printed, or allow the name (--allow-host)",
            )
        if scope["method"] not in _READS and not self._is_own(headers):
            return (
                403,
                "origin",
                "another site has the browser ask this",
                "open the desk by the address that the command printed",
            )
        if self._https_only and not secure:
            return (
                403,
                "https",
                "the proxy does not say that it was asked by https",
                "have it set X-Forwarded-Proto, and name its address (--behind-proxy)",
            )
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "length", "Content-Length is no number", "send its length in bytes"
        return self._too_large() if int(length) > self._most_body else None

    def _knows(self, host: str) -> bool:
        """Whether a host, perhaps with a port, is one of the names of the service."""
        host = host.rpartition("@")[2]
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
        return name.lower() in self._hosts

    def _is_own(self, headers: Headers) -> bool:
        """Whether what changes something was not sent by a page of another site; programs name no site."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = headers.get("origin")
        return origin is None or self._knows(origin.partition("://")[2])

    def _too_large(self) -> tuple[int, str, str, str]:
        return (
            413,
            "too_large",
            f"more than {self._most_body} bytes were sent",
            "send a smaller file, or allow more (--most-upload)",
        )


async def _answer(send: Send, status: int, code: str, message: str, remedy: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message, "remedy": remedy}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
