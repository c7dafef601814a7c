"""A desk: everything that the service answers from, put together once."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import final

from medfm_rl.errors import DataError, UserError
from medfm_rl.service.access import Access
from medfm_rl.service.catalogue import Catalogue, Item, read_catalogue, state_of_files
from medfm_rl.service.database import Database
from medfm_rl.service.decisions import Decisions
from medfm_rl.service.drafts import Drafts
from medfm_rl.service.errors import not_found
from medfm_rl.service.jobs import Jobs
from medfm_rl.service.leases import Leases
from medfm_rl.service.pixels import Pixels
from medfm_rl.service.request import DeskRequest
from medfm_rl.service.scorer import Scorer
from medfm_rl.service.showing import Showing
from medfm_rl.service.work import Work

_LOG = logging.getLogger(__name__)


@final
class Desk:
    """A desk on a store and what is to be reviewed.

    Args:
        request: What it is opened for.
        token: The token of its one person, until it has users.

    Attributes:
        request: What it is opened for.
        database: The store and the tables beside it.
        access: Who may do what.
        leases: Who works on what.
        work: What is left.
        showing: Cases as they are shown.
        drafts: Masks that were sent.
        decisions: Records what is said.
        jobs: Long work.
        scorer: Scores what programs send; None where the desk has no run.

    Raises:
        UserError: The store or the folders cannot be used.
    """

    def __init__(self, request: DeskRequest, token: str) -> None:
        self.request = request
        self.database = Database(request.store)
        self._files = state_of_files(request)
        self._refreshing = threading.Lock()
        catalogue = read_catalogue(request)
        self.access = Access(
            self.database, token, request.reviewer, request.session_hours, by_token=request.openid is None
        )
        self.leases = Leases(self.database, request.lease_seconds)
        self.work = Work(catalogue, self.database, request.second_share, request.seed)
        self.drafts = Drafts(self.database)
        self.showing = Showing(
            Pixels(catalogue.structures, request.images, request.structures is not None),
            self.drafts,
            self.database.secret("blind"),
        )
        self.decisions = Decisions(self.database, self.showing, self.work)
        self.jobs = Jobs(self.database, request.store, request.jobs)
        self.jobs.start_next()
        self.scorer = None if request.run is None else Scorer(request.run, request.jobs, request.roots)
        _LOG.info("%s: %d items to review", self.database.store.where, len(catalogue.items))

    @property
    def catalogue(self) -> Catalogue:
        """What there is to do."""
        return self.work.catalogue

    def refresh(self) -> None:
        """Takes in what has come since the last look: decisions, and what the desk was opened on.

        Where that cannot be read any more, or has other structures now, the desk goes on with what it knows, and its
        log says why.
        """
        with self._refreshing:
            files = state_of_files(self.request)
            if files != self._files:
                self._files = files
                self._read_again()
        self.work.refresh()

    def _read_again(self) -> None:
        known = self.catalogue.structures.names
        try:
            catalogue = read_catalogue(self.request)
            if catalogue.structures.names != known:
                raise DataError(
                    f"the masks are of {', '.join(catalogue.structures.names[1:])} now, and the desk was opened on "
                    f"{', '.join(known[1:])}; open it again"
                )
        except UserError as error:
            _LOG.warning("the queue stays as it is: %s", error)
            return
        self.showing.pixels.forget()
        self.work.follow(catalogue)
        _LOG.info("%s: %d items to review now", self.database.store.where, len(catalogue.items))

    def scratch(self) -> Path:
        """A folder for what is needed as long as a request."""
        self.request.jobs.mkdir(parents=True, exist_ok=True)
        return self.request.jobs

    def item(self, name: str) -> Item:
        """An item by its id.

        Raises:
            DeskError: There is none.
        """
        found = self.work.item(name)
        if found is None:
            self.work.refresh()
            found = self.work.item(name)
        if found is None:
            raise not_found("case")
        return found
