"""Recognises a dataset that an earlier call has already made, by what is recorded in its metadata.

`collect` and the Hub's `import_datasets` make one dataset per task and may be killed and called again. Each of them writes a
fingerprint into the metadata: a JSON text of everything that the dataset depends on. A second call then keeps a dataset with
the same fingerprint, refuses one with another fingerprint, and replaces that one only if told to overwrite.

    m3dt_collect or m3dt_import                      the fingerprint, under the maker's own key
    m3dt_episodes, m3dt_steps, m3dt_mean_return      `Totals`, from which the summary of a kept dataset is made
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..errors import DatasetError
from ..system.disk import path_errors, restore_replaced
from .validation import read_metadata


class Totals(TypedDict):
    """What every maker records about a dataset, and repeats in its summary. mean_return: mean undiscounted return."""

    episodes: int
    steps: int
    mean_return: float


def is_kept(path: Path, key: str, fingerprint: str, *, overwrite: bool) -> bool:
    """Whether the dataset at `path` is already the one with this fingerprint, which its metadata has under `key`.

    False: it must be made, because there is none, or because it is another or a damaged one that may be overwritten.

    Raises:
        DatasetError: without `overwrite`, there is a dataset with another fingerprint or a damaged one.
    """
    restore_replaced(path.parent)
    with path_errors(path):
        if not path.exists():
            return False
    try:
        found = read_metadata(path).get(key)
    except DatasetError as error:
        if overwrite:
            return False
        raise DatasetError(f"{error}; remove it, or pass overwrite=True") from error
    if found != fingerprint and not overwrite:
        raise DatasetError(
            f"{path} exists and was made from {found or f'something else (its metadata has no {key})'}; "
            f"asked for was {fingerprint}. Choose another source name, or pass overwrite=True"
        )
    return bool(found == fingerprint)


def totals_to_metadata(totals: Totals) -> dict[str, int | float]:
    """The metadata entries that hold `totals`."""
    return {
        "m3dt_episodes": totals["episodes"],
        "m3dt_steps": totals["steps"],
        "m3dt_mean_return": totals["mean_return"],
    }


def totals_from_metadata(metadata: Mapping[str, Any]) -> Totals:
    """The inverse of `totals_to_metadata`; other entries are ignored.

    Raises:
        DatasetError: an entry is missing or not a number.
    """
    return Totals(
        episodes=int(number_in(metadata, "m3dt_episodes")),
        steps=int(number_in(metadata, "m3dt_steps")),
        mean_return=float(number_in(metadata, "m3dt_mean_return")),
    )


def number_in(metadata: Mapping[str, Any], key: str) -> int | float:
    """The number that a dataset's metadata has under `key`.

    Raises:
        DatasetError: it has none, or something that is no number.
    """
    found = metadata.get(key)
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        raise DatasetError(
            f"the metadata of a dataset has {key} = {str(found)[:80]!r} where its maker wrote a number; "
            "remove the dataset, or pass overwrite=True"
        )
    return found
