"""Signing in at the identity provider of an organisation, by OpenID Connect."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from joserfc.errors import JoseError
from starlette.requests import Request
from starlette.responses import Response

from medfm_rl.data.files import cannot_be_read
from medfm_rl.errors import ConfigError
from medfm_rl.feedback.entries import require_reviewer
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.service.access import ROLES
from medfm_rl.service.database import Database
from medfm_rl.service.errors import DeskError
from medfm_rl.settings import OpenIDSettings
from medfm_rl.settings.openid import Role

_ID_LENGTH = 12
_REFUSALS = (AuthlibBaseError, JoseError, httpx2.HTTPError, ValueError, KeyError, TypeError, RuntimeError)
"""What the library raises where the provider is away, answers nonsense, or vouches for nobody."""


@dataclass(frozen=True)
class Vouched:
    """Who somebody is, by the word of the organisation.

    Attributes:
        reviewer: The id under which decisions are kept.
        role: What the groups of the person allow.
    """

    reviewer: str
    role: Role


@final
class Organisation:
    """The identity provider of an organisation, as the desk asks it.

    The authorisation code flow with PKCE, state and nonce. The library checks signature, times and nonce of what the
    provider says; issuer and audience have to be those of the settings.

    Args:
        settings: Where it is, and what its groups may do.
        database: Keeps the key by which ids of reviewers are made.

    Attributes:
        key: Signs the cookie that a browser brings back from the provider.

    Raises:
        UserError: The secret cannot be read.
    """

    def __init__(self, settings: OpenIDSettings, database: Database) -> None:
        self._settings = settings
        self._blind = database.secret("openid-ids")
        self.key = database.secret("openid-state").hex()
        self._client: Any = OAuth().register(
            "organisation",
            client_id=settings.client_id,
            client_secret=_secret(settings),
            server_metadata_url=f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={"scope": " ".join(settings.scopes), "code_challenge_method": "S256"},
        )

    async def leave_for(self, request: Request, back: str) -> Response:
        """Sends a browser to the provider.

        Args:
            request: Of the browser.
            back: Where the provider is to send it back.

        Raises:
            DeskError: The provider is away, or is not the one of the settings.
        """
        try:
            metadata = await self._client.load_server_metadata()
            if metadata.get("issuer") != self._settings.issuer:
                raise _refusal(f"it calls itself {metadata.get('issuer')} and not {self._settings.issuer}")
            found: Response = await self._client.authorize_redirect(request, back)
        except _REFUSALS as error:
            raise _refusal(_told(error)) from error
        return found

    async def vouch(self, request: Request) -> Vouched:
        """Who the provider says that a browser belongs to.

        Args:
            request: With which the browser came back.

        Raises:
            DeskError: The provider says nobody, what it says does not hold, or the person has no role here.
        """
        settings = self._settings
        wanted = {
            "iss": {"essential": True, "values": [settings.issuer]},
            "aud": {"essential": True, "values": [settings.client_id]},
        }
        try:
            token = await self._client.authorize_access_token(request, claims_options=wanted)
            claims: Mapping[str, Any] = token["userinfo"]
            subject = str(claims["sub"])
        except _REFUSALS as error:
            raise _refusal(_told(error)) from error
        return Vouched(self._reviewer(claims, subject), self._role(claims))

    def _reviewer(self, claims: Mapping[str, Any], subject: str) -> str:
        claim = self._settings.reviewer_claim
        if claim is None:
            message = f"{self._settings.issuer}\0{subject}".encode()
            return f"u-{hmac.new(self._blind, message, 'sha256').hexdigest()[:_ID_LENGTH]}"
        found = claims.get(claim)
        try:
            require_reviewer(str(found))
        except FeedbackError as error:
            raise _refusal(f"the claim {claim} holds no opaque id ({error})") from error
        return str(found)

    def _role(self, claims: Mapping[str, Any]) -> Role:
        """The highest role of the groups of a person.

        Raises:
            DeskError: None of them has one.
        """
        named = claims.get(self._settings.roles_claim)
        groups = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        roles = [self._settings.roles[group] for group in groups if group in self._settings.roles]
        if not roles:
            raise DeskError(
                403,
                "no_role",
                "your organisation knows you, and none of your groups may use this desk",
                "ask who administers it for a group that may",
            )
        return max(roles, key=ROLES.index)


def _secret(settings: OpenIDSettings) -> str | None:
    path = settings.client_secret_file
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text; give a file that holds the secret and nothing else") from error


def _told(error: Exception) -> str:
    """What an error says, in the words of OAuth where it has such."""
    words = [str(word) for name in ("error", "description") if (word := getattr(error, name, None))]
    return ": ".join(words) if words else type(error).__name__


def _refusal(why: str) -> DeskError:
    return DeskError(
        401, "organisation", f"your organisation did not sign you in ({why})", "try again, or tell who runs the desk"
    )
