"""An identity provider of an organisation, as small as OpenID Connect allows, that vouches for whoever a test says."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import RSAKey
from support.desk_browser import served_app

_KEY = RSAKey.generate_key(2048, {"use": "sig", "kid": "k1"})
CLIENT, SECRET = "medfm-desk", "the secret of the registration"


@dataclass
class Provider:
    """What it says.

    Attributes:
        address: Where it is; also its issuer.
        claims: Of who signs in, beside what every token has; one of them can also be made wrong.
        issuer: As it calls itself in its description.
        refuses: Whether it sends everybody back without a code.
    """

    address: str = ""
    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "person-1", "groups": ["echo-lab"]})
    issuer: str = ""
    refuses: bool = False
    asked: dict[str, dict[str, str]] = field(default_factory=dict)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        def description() -> dict[str, Any]:
            return {
                "issuer": self.issuer or self.address,
                "authorization_endpoint": f"{self.address}/authorise",
                "token_endpoint": f"{self.address}/token",
                "jwks_uri": f"{self.address}/keys",
                "id_token_signing_alg_values_supported": ["RS256"],
            }

        @app.get("/keys")
        def keys() -> dict[str, Any]:
            return {"keys": [_KEY.as_dict(private=False)]}

        @app.get("/authorise")
        def authorise(request: Request) -> RedirectResponse:
            query = dict(request.query_params)
            if self.refuses:
                return RedirectResponse(f"{query['redirect_uri']}?error=access_denied&state={query['state']}")
            code = secrets.token_urlsafe(8)
            self.asked[code] = query
            return RedirectResponse(f"{query['redirect_uri']}?code={code}&state={query['state']}")

        @app.post("/token")
        def token(request: Request, code: str = Form(), code_verifier: str = Form()) -> Any:
            query = self.asked.pop(code)
            digest = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest()).rstrip(b"=").decode()
            basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
            if query["code_challenge"] != digest or request.headers.get("authorization") != f"Basic {basic}":
                return JSONResponse({"error": "invalid_grant"}, 400)
            now = int(time.time())
            claims = {
                "iss": self.address,
                "aud": CLIENT,
                "iat": now,
                "exp": now + 60,
                "nonce": query["nonce"],
                **self.claims,
            }
            signed = jwt.encode({"alg": "RS256", "kid": "k1"}, claims, _KEY)
            return {"access_token": "a", "token_type": "Bearer", "id_token": signed}

        return app


@contextmanager
def provider() -> Iterator[Provider]:
    """An identity provider on loopback."""
    made = Provider()
    with served_app(made.app()) as address:
        made.address = address
        yield made
