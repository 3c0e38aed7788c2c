"""Every error this package raises on purpose.

    M3DTError
    ├── UnknownTaskError       (KeyError)      a task, set, stage or policy name that does not exist
    ├── ConfigError            (ValueError)    a configuration that cannot work
    ├── ShapeError             (ValueError)    an array or batch of the wrong shape
    ├── InvalidValueError      (ValueError)    NaN, infinity, or a value out of its range
    ├── DatasetError           (ValueError)    a dataset that is damaged, incomplete or does not fit its task
    ├── BankError              (ValueError)    a bank file that is missing, damaged or foreign
    ├── StageError             (RuntimeError)  a training stage called before what it needs exists
    ├── WorkerError            (RuntimeError)  another worker of a shared training run failed or was lost
    ├── HubError               (OSError)       the Hugging Face Hub refused, failed or cannot be reached
    │   └── HubConflictError                   the Hub holds something that differs from what is pushed
    ├── MissingDependencyError (ImportError)   an optional package that is not installed
    ├── DiskSpaceError         (OSError)       not enough room for what is about to be written
    ├── UnwrittenRowsError     (OSError)       the rows of an evaluation that could not be written; it carries them
    └── PathError              (OSError)       a path that cannot be read or written: missing, no folder, no permission, …

Catch `M3DTError` for all of them, or the built-in class that each also inherits from.
"""

from collections.abc import Sequence
from typing import Any


class M3DTError(Exception):
    """The base class of every error that this package raises on purpose."""


class UnknownTaskError(M3DTError, KeyError):
    """A name that is not in the table it was looked up in."""

    __str__ = Exception.__str__  # KeyError would show the message quoted


class ConfigError(M3DTError, ValueError):
    """A configuration value, or combination of values, that cannot work."""


class ShapeError(M3DTError, ValueError):
    """An array whose shape or batch size does not fit."""


class InvalidValueError(M3DTError, ValueError):
    """A NaN, an infinity, or a number outside its range."""


class DatasetError(M3DTError, ValueError):
    """A dataset that is damaged, incomplete, ambiguous or does not fit its task."""


class BankError(M3DTError, ValueError):
    """A bank folder with a missing, truncated, altered or foreign file."""


class StageError(M3DTError, RuntimeError):
    """A training stage asked for before the stages it builds on are done."""


class WorkerError(M3DTError, RuntimeError):
    """Another worker of a shared training run failed, was lost, or does not answer."""


class HubError(M3DTError, OSError):
    """A request to the Hugging Face Hub was refused or failed, or what it asked for does not exist."""


class HubConflictError(HubError):
    """The Hub already holds something that differs from what is pushed."""


class MissingDependencyError(M3DTError, ImportError):
    """An optional dependency that is not installed; the message names the extra to install."""


class DiskSpaceError(M3DTError, OSError):
    """Not enough free disk space for what is about to be written."""


class PathError(M3DTError, OSError):
    """A path that cannot be read or written: missing, a file where a folder is needed, read-only, no permission, …"""


class UnwrittenRowsError(M3DTError, OSError):
    """The rows of a finished evaluation that could not be written. rows: all of them, as `evaluate` would return them."""

    def __init__(self, message: str, rows: Sequence[Any]) -> None:
        super().__init__(message)
        self.rows = rows
