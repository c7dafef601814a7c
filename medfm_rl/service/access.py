"""Who may do what: users with roles, sessions of browsers, tokens of programs, and the one token of one person."""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import final, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection

from medfm_rl.errors import ConfigError
from medfm_rl.feedback.entries import require_reviewer
from medfm_rl.service.database import Database, add_note, digest_of
from medfm_rl.service.errors import DeskError
from medfm_rl.service.tables import SessionRow, UserRow, now_text
from medfm_rl.settings.openid import Role

ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 200
HASHER = PasswordHasher()
"""Argon2 with the costs that its authors recommend."""
IDLE_HOURS = 2.0
"""A session that nobody used for so long has ended."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,200}")
_SEEN_EVERY = timedelta(minutes=1)
_VOUCHED = "-"
"""In place of the hash of a password, for who logs in at an organisation alone; no password has this hash."""


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        reviewer: The id under which decisions are kept.
        role: What he may do.
        session: Hash of the session; None where a token says who it is.
    """

    reviewer: str
    role: Role
    session: str | None

    def may(self, role: Role) -> bool:
        """Whether what takes that role is allowed."""
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class User:
    """A user, without the password."""

    name: str
    role: Role
    active: bool
    created: str


@final
class Access:
    """The users, sessions and tokens of a desk.

    A desk has one person, who shows the token that the command printed, until it has users.

    Args:
        database: Where they are kept.
        token: The one token.
        reviewer: The id of who shows it.
        session_hours: How long a session lasts at most.
        by_token: Whether the one token counts as long as there are no users; not where an organisation says who
            somebody is.
    """

    def __init__(
        self, database: Database, token: str, reviewer: str, session_hours: float, by_token: bool = True
    ) -> None:
        if not _TOKEN.fullmatch(token):
            raise ConfigError("the token must have 20 to 200 letters, digits, hyphens and underscores")
        self._database = database
        self._token = token
        self._reviewer = reviewer
        self._hours = session_hours
        self._by_token = by_token
        self._key = database.secret("csrf")

    @classmethod
    def of_store(cls, database: Database) -> Access:
        """For who changes users without a service, and shows no token."""
        return cls(database, secrets.token_urlsafe(32), "r1", 1.0)

    @property
    def with_users(self) -> bool:
        """Whether people log in as users, and the one token opens nothing."""
        with self._database.reading() as connection:
            return not self._token_counts(connection)

    @property
    def with_passwords(self) -> bool:
        """Whether a user logs in by name and password."""
        with self._database.reading() as connection:
            by_password = select(UserRow.name).where(UserRow.password != _VOUCHED).limit(1)
            return connection.execute(by_password).one_or_none() is not None

    def log_in_by_token(self, token: str) -> str:
        """Starts a session for who shows the token; returns what the browser keeps.

        Raises:
            DeskError: It is another, or the desk has users.
        """
        if self.with_users or not self._is_token(token):
            raise _wrong("the token is not that of this desk", "copy the address that `medfm-rl desk` printed")
        return self._start(None)

    def log_in(self, name: str, password: str) -> str:
        """Starts a session for a user; returns what the browser keeps.

        Raises:
            DeskError: Name or password are wrong; it is not said which.
        """
        with self._database.reading() as connection:
            row = connection.execute(select(UserRow.__table__).where(UserRow.name == name)).one_or_none()
        # As long for a name that nobody has: the time must not tell which there are.
        right = check_password(self._nobody if row is None else row.password, password[:LONGEST_PASSWORD])
        if row is None or not row.active or not right:
            raise _wrong("name or password are wrong", "try again, or ask the administrator for a new password")
        return self._start(name)

    def log_in_vouched(self, name: str, role: Role) -> str:
        """Starts a session for whom an organisation vouches; who is new becomes a user.

        Raises:
            DeskError: The user was shut out, or is one who logs in by password.
        """
        with self._database.writing() as connection:
            known = connection.execute(select(UserRow.__table__).where(UserRow.name == name)).one_or_none()
            if known is not None and known.password != _VOUCHED:
                raise _wrong(
                    f"{name} is a user of this desk who logs in by password", "log in so, or ask the administrator"
                )
            if known is not None and not known.active:
                raise _wrong(f"user {name} was shut out", "ask the administrator")
            if known is None:
                connection.execute(
                    insert(UserRow).values(name=name, role=role, password=_VOUCHED, active=True, created=now_text())
                )
            elif known.role != role:
                connection.execute(update(UserRow).where(UserRow.name == name).values(role=role))
            if known is None or known.role != role:
                add_note(connection, name, "set user", user=name, role=role, active=True)
        return self._start(name)

    def by_session(self, session: str) -> Principal | None:
        """Who a session belongs to; None where it has ended or never was."""
        digest = digest_of(session)
        with self._database.reading() as connection:
            found = self._principal(connection, digest, "session")
            row = connection.execute(select(SessionRow.seen).where(SessionRow.digest == digest)).one_or_none()
        if found is None or row is None:
            return None
        now = datetime.now(UTC)
        if now - datetime.fromisoformat(row.seen) > timedelta(hours=IDLE_HOURS):
            return None
        if now - datetime.fromisoformat(row.seen) > _SEEN_EVERY:
            with self._database.writing() as connection:
                connection.execute(update(SessionRow).where(SessionRow.digest == digest).values(seen=now_text()))
        return found

    def by_bearer(self, token: str) -> Principal | None:
        """Who a token of a program belongs to; None where it is none."""
        with self._database.reading() as connection:
            if self._is_token(token):
                counts = self._token_counts(connection)
                return Principal(self._reviewer, "administrator", None) if counts else None
            found = self._principal(connection, digest_of(token), "token")
        return None if found is None else Principal(found.reviewer, found.role, None)

    def csrf_of(self, principal: Principal) -> str:
        """What a page has to send along with whatever changes something: it goes with the session alone."""
        return hmac.new(self._key, (principal.session or "").encode(), "sha256").hexdigest()

    def log_out(self, session: str) -> None:
        """Ends a session."""
        with self._database.writing() as connection:
            connection.execute(delete(SessionRow).where(SessionRow.digest == digest_of(session)))

    def new_token(self, principal: Principal, label: str, days: int) -> str:
        """Makes a token for programs of a user; it is shown this once."""
        token = secrets.token_urlsafe(32)
        user = principal.reviewer if self.with_users else None
        with self._database.writing() as connection:
            self._keep(connection, token, "token", user, label, timedelta(days=days))
            add_note(connection, principal.reviewer, "new token", label=label, days=days)
        return token

    def users(self) -> list[User]:
        """The users by name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(UserRow.__table__).order_by(UserRow.name))
            return [User(row.name, row.role, row.active, row.created) for row in rows]

    def set_user(self, by: str, name: str, role: Role, password: str | None, active: bool = True) -> User:
        """Makes a user, or changes one; a new password ends his sessions.

        Raises:
            FeedbackError: The name is no opaque id.
            DeskError: A new user has no password, it is too short, or nobody would be left who can administrate.
        """
        require_reviewer(name)
        if password is not None and not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise DeskError(
                422,
                "password",
                f"the password has {len(password)} letters",
                f"choose one of {SHORTEST_PASSWORD} to {LONGEST_PASSWORD}",
            )
        hashed = None if password is None else HASHER.hash(password)
        with self._database.writing() as connection:
            known = connection.execute(select(UserRow.__table__).where(UserRow.name == name)).one_or_none()
            if known is None and hashed is None:
                raise DeskError(422, "password", f"user {name} is new and has no password", "give one")
            values = {"role": role, "active": active, **({} if hashed is None else {"password": hashed})}
            if known is None:
                connection.execute(insert(UserRow).values(name=name, created=now_text(), **values))
            else:
                connection.execute(update(UserRow).where(UserRow.name == name).values(**values))
            administrators = connection.execute(
                select(func.count()).select_from(UserRow).where(UserRow.role == ROLES[-1], UserRow.active)
            ).scalar_one()
            # Where an organisation says who administrates, it need not have said so yet.
            if not administrators and self._by_token:
                raise DeskError(
                    409,
                    "no_administrator",
                    "no administrator would be left",
                    "make the first user, or another one, an administrator",
                )
            if hashed is not None or not active:
                connection.execute(delete(SessionRow).where(SessionRow.user == name))
            add_note(connection, by, "set user", user=name, role=role, active=active)
        return next(user for user in self.users() if user.name == name)

    @cached_property
    def _nobody(self) -> str:
        """The hash of a password that nobody has."""
        return HASHER.hash(secrets.token_urlsafe(32))

    def _token_counts(self, connection: Connection) -> bool:
        return self._by_token and connection.execute(select(UserRow.name).limit(1)).one_or_none() is None

    def _is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(errors="surrogatepass"), self._token.encode())

    def _start(self, user: str | None) -> str:
        session = secrets.token_urlsafe(32)
        with self._database.writing() as connection:
            connection.execute(delete(SessionRow).where(SessionRow.expires < now_text()))
            self._keep(connection, session, "session", user, "", timedelta(hours=self._hours))
            add_note(connection, user or self._reviewer, "log in")
        return session

    def _keep(
        self, connection: Connection, secret: str, kind: str, user: str | None, label: str, lasts: timedelta
    ) -> None:
        expires = (datetime.now(UTC) + lasts).isoformat(timespec="microseconds")
        now = now_text()
        values = {"kind": kind, "user": user, "label": label, "created": now, "seen": now, "expires": expires}
        connection.execute(insert(SessionRow).values(digest=digest_of(secret), **values))

    def _principal(self, connection: Connection, digest: str, kind: str) -> Principal | None:
        row = connection.execute(
            select(SessionRow.__table__).where(SessionRow.digest == digest, SessionRow.kind == kind)
        ).one_or_none()
        if row is None or row.expires < now_text():
            return None
        if row.user_name is None:
            # Whoever showed the one token has no rights any more once there are users.
            return Principal(self._reviewer, "administrator", digest) if self._token_counts(connection) else None
        user = connection.execute(select(UserRow.__table__).where(UserRow.name == row.user_name)).one_or_none()
        return Principal(user.name, user.role, digest) if user is not None and user.active else None


def check_password(hashed: str, password: str) -> bool:
    """Whether a password is the one of a hash."""
    try:
        return HASHER.verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False


def _wrong(message: str, remedy: str) -> DeskError:
    return DeskError(401, "login", message, remedy)
