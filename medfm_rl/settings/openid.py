"""How a desk asks the identity provider of an organisation who somebody is."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from medfm_rl.settings.base import Settings

Role = Literal["reviewer", "lead", "administrator"]
"""What somebody may do at a desk; each may do what those before may."""


class OpenIDSettings(Settings):
    """Sign-in at the identity provider of an organisation by OpenID Connect, as `medfm-rl desk --openid` reads it."""

    issuer: str = Field(
        description="Address of the provider, as it names itself; what it is able to do is read from "
        "ISSUER/.well-known/openid-configuration."
    )
    client_id: str = Field(min_length=1, description="Name under which the desk is registered there.")
    client_secret_file: Path | None = Field(
        None, description="File that holds the secret of that registration; null for a public client, by PKCE alone."
    )
    scopes: tuple[str, ...] = Field(("openid",), description="What is asked for; openid must be among it.")
    roles_claim: str = Field("groups", min_length=1, description="Claim that lists the groups of a person.")
    roles: dict[str, Role] = Field(
        min_length=1,
        description="Role of the members of a group; of several the highest counts. Who is in none is not let in.",
    )
    reviewer_claim: str | None = Field(
        None,
        description="Claim with the opaque id of a reviewer, under which decisions are kept. null: an id that is made "
        "of the person's `sub` by a key of the store, so that nobody can tell the person by it.",
    )

    @field_validator("issuer")
    @classmethod
    def _is_safe(cls, issuer: str) -> str:
        parts = urlsplit(issuer)
        if parts.scheme == "https" and parts.hostname:
            return issuer
        if parts.scheme == "http" and parts.hostname and is_loopback(parts.hostname):
            return issuer
        raise ValueError("must begin with https://, or be on this machine: who somebody is has to come unaltered")

    @model_validator(mode="after")
    def _asks_who_it_is(self) -> Self:
        if "openid" not in self.scopes:
            raise ValueError("scopes: openid is missing; without it the provider does not say who signs in")
        return self


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
