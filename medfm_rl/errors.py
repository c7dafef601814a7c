"""Errors that a person can act on.

Every error that stems from what the user handed over (a file, a field, a folder) is a `UserError`: the command line
prints its message without a traceback and exits with code 2. Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input. The message names the file or field, what is wrong with it, and what to do."""


class DataError(UserError):
    """An image, a mask or a data set that cannot be used."""


class StorageError(UserError):
    """A disk or database that does not take or give what it should.

    Nothing is wrong with what was to be written: the same can succeed later.
    """


class DiskError(DataError, StorageError):
    """A file or folder that cannot be written: the disk is full, read-only or gone."""


class DamagedClipError(DataError):
    """A file that is a clip for certain, and cannot be used as one: it would be wrong to call it no image."""


class ConfigError(UserError):
    """A settings file with an unknown, missing or wrong field."""


class ModelError(UserError):
    """A segmenter, reward network or checkpoint that cannot be used."""


class TrackingError(UserError):
    """A tracking store that does not answer or refuses what it was sent."""


class MissingExtraError(UserError):
    """An optional package is needed and not installed; the message says which extra brings it."""


class ProcessesError(UserError):
    """Processes that should share a run and cannot, or one of which has ended.

    Attributes:
        shown_elsewhere: Whether another process shows the message, so that it is read once.
    """

    def __init__(self, message: str, shown_elsewhere: bool = False) -> None:
        super().__init__(message)
        self.shown_elsewhere = shown_elsewhere
