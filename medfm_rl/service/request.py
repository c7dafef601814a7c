"""What a desk is opened for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medfm_rl.errors import ConfigError
from medfm_rl.feedback.entries import require_reviewer
from medfm_rl.settings import OpenIDSettings
from medfm_rl.types import LabelSchema

_SHORTEST_LEASE = 10
_MIB = 1 << 20


@dataclass(frozen=True)
class DeskRequest:
    """Where the work of a desk comes from, where decisions go, and how it is shared out.

    Attributes:
        store: The feedback store, a SQLite file or the URL of a PostgreSQL database.
        scores: Folders of `medfm-rl score`.
        corrections: Folders of `medfm-rl correct`: what it proposes is compared with what it was given.
        proposals: Folders of `medfm-rl propose`.
        streams: Streams of `medfm-rl stream add`: masks drawn for audit are reviewed first.
        accepted: Also show masks that the score accepted, last.
        structures: Names and integers in the mask files, where these are not 1, 2, ... in the order of the scores.
        images: Where images lie now, if they were moved since they were scored; taken by name and hash.
        run: Run of `adapt` that scores on request, and from whose settings a new adaptation starts.
        roots: Folders from which programs may have files scored by path.
        jobs: Folder for what jobs write.
        reviewer: Id under which the one person of a desk without users decides.
        second_share: Share of decided masks that another reviewer is asked about again, in [0, 1].
        seed: Of that draw.
        lease_seconds: How long a case stays with who opened it, unless the page says that it is still open.
        session_hours: How long a session lasts at most.
        most_upload: Bytes of an upload at most.
        openid: The identity provider at which people sign in; None where they do by password or token.
    """

    store: Path | str
    scores: tuple[Path, ...]
    corrections: tuple[Path, ...] = ()
    proposals: tuple[Path, ...] = ()
    streams: tuple[Path, ...] = ()
    accepted: bool = False
    structures: LabelSchema | None = None
    images: Path | None = None
    run: Path | None = None
    roots: tuple[Path, ...] = ()
    jobs: Path = Path("desk-jobs")
    reviewer: str = "r1"
    second_share: float = 0.0
    seed: int = 0
    lease_seconds: int = 900
    session_hours: float = 12.0
    most_upload: int = 256 * _MIB
    openid: OpenIDSettings | None = None

    def __post_init__(self) -> None:
        require_reviewer(self.reviewer)
        if not 0 <= self.second_share <= 1:
            raise ConfigError(f"--second-share {self.second_share:g}: must be a share from 0 to 1")
        if self.lease_seconds < _SHORTEST_LEASE:
            raise ConfigError(f"--lease-seconds {self.lease_seconds}: must be {_SHORTEST_LEASE} at least")
        if not (self.scores or self.proposals):
            raise ConfigError(
                "give a folder of `medfm-rl score` (--scores), or one of `medfm-rl propose` (--proposals)"
            )
