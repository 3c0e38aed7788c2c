"""One bank on its way to a repository or a folder.

stages of the bank ──► for each: the change that adds it to the head ──► one commit and one tag
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from torch import Tensor

from m3dt_agent.bank import ExpertBank, is_bank
from m3dt_agent.bank.manifest import Manifest, is_bank_file
from m3dt_agent.errors import BankError, ConfigError, PathError
from m3dt_agent.hub.bank_stages import merge, stage_manifests, stage_tag, statuses
from m3dt_agent.hub.cards import MARK, model_card
from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.pushes import Push
from m3dt_agent.hub.remote_banks import MANIFEST, is_there, remote_manifest
from m3dt_agent.hub.snapshots import CARD, Change, Operation, Snapshot
from m3dt_agent.scores import EpisodeResult

FIGURE = "scores.png"
_MERGED = ("groups", "grouping", "stages", "specs", "grown")
"""The fields of a manifest that two versions of a bank may each have a part of."""


@dataclass(frozen=True, slots=True)
class PushedBank:
    """What a push did. sha: the head now (None: a folder); tag: of the stage that the bank there has reached; files: those that
    were sent; commits: how many it took."""

    sha: str | None
    tag: str
    files: tuple[str, ...]
    commits: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores that the card shows: none without rows. policy: whose rows count, if several could. figure: a PNG."""

    rows: tuple[EpisodeResult, ...] = ()
    policy: str | None = None
    figure: Path | None = None


class BankPush:
    """A push of `bank` to `repo`, by `run`. The bank must not change meanwhile."""

    def __init__(self, repo: HubRepo, bank: ExpertBank, evaluation: Evaluation, *, overwrite: bool) -> None:
        self.repo, self.bank, self.evaluation, self.overwrite = repo, bank, evaluation, overwrite
        self.merged = bank.manifest  # of the newest commit
        self.files: tuple[str, ...] = ()  # of the newest change

    def run(self, private: bool | None) -> PushedBank:
        """Commits and tags every stage that is new there.

        Raises:
            As `banks.push_bank`.
        """
        self._model_card(self.bank.manifest, self.evaluation)  # unsuitable rows are an error before anything is sent
        push = Push(self.repo, private=private)
        self._check_rows(push.head)
        tags, sent = self.repo.tags(), list[str]()
        parts = stage_manifests(self.bank.manifest)
        if self.overwrite and (there := self._there(push.head)) is not None:
            self._remove_stale_tags(there, parts, tags)
            parts = parts[-1:]  # one commit, so that a new backbone never stands beside experts of the old one
        for part in parts:
            made = push.commit(functools.partial(self._change, part=part, last=part is parts[-1]))
            if made:
                sent += self.files
            if made or stage_tag(self.merged) not in tags:
                self.repo.set_tag(stage_tag(self.merged), push.head.sha, tags)
        return PushedBank(push.head.sha, stage_tag(self.merged), tuple(sent), push.commits)

    def _remove_stale_tags(self, there: Manifest, parts: Sequence[Manifest], tags: dict[str, str]) -> None:
        """Removes the tags of stages whose files will be replaced."""
        kept = {stage_tag(part) for part in parts if part.files.items() <= there.files.items()}
        experts_stay = "stage-experts" in kept or any(tag.startswith("stage-experts-") for tag in kept)
        for tag in [tag for tag in tags if tag.startswith("stage-") and tag not in kept]:
            if not (experts_stay and tag.startswith("stage-experts-")):  # fewer of the same experts
                self.repo.remove_tag(tag, tags)

    def _check_rows(self, head: Snapshot) -> None:
        """Refuses rows of this bank if the bank that will be there has more files, before anything is sent."""
        there = self._there(head) if self.evaluation.rows and not self.overwrite else None
        if there is not None and (others := set(there.files) - set(self.bank.manifest.files)):
            raise ConfigError(
                f"{self.repo} has {', '.join(sorted(others))}, which this bank does not have, so rows of this bank are not "
                "rows of what will be there; pull it, evaluate that, and push its rows"
            )

    def _model_card(self, manifest: Manifest, evaluation: Evaluation) -> str:
        figure = FIGURE if evaluation.figure is not None else None
        bank = ExpertBank(self.bank.path, manifest)
        return model_card(bank, self.repo.repo_id, rows=evaluation.rows, policy=evaluation.policy, figure=figure)

    def _change(self, head: Snapshot, part: Manifest, *, last: bool) -> Change:
        """What has to be done to the head so that it holds `part` too."""
        there = self._there(head)
        replace = self.overwrite and last
        merged = part if there is None or replace else merge(there, part, str(self.repo))
        changed = [name for name, record in merged.files.items() if not is_there(name, record, head, there)]
        if lost := [name for name in changed if self.bank.manifest.files.get(name) != merged.files[name]]:
            raise BankError(
                f"{self.repo} is damaged: its {MANIFEST} lists {', '.join(lost)}, but neither the repository nor this bank "
                "holds that; overwrite=True replaces the repository with this bank"
            )
        operations: list[Operation] = [CommitOperationAdd(name, str(self.bank.file(name))) for name in changed]
        if replace:
            stale = [name for name in head.files if is_bank_file(name) and name not in merged.files]
            operations += [CommitOperationDelete(name) for name in stale]
        if operations or merged != there:
            operations.append(CommitOperationAdd(MANIFEST, merged.to_json().encode()))
        operations += self._card(head, there, merged, last=last)
        self.merged = merged
        if operations:  # none: an earlier try has arrived, and `files` says what it sent
            self.files = tuple(operation.path_in_repo for operation in operations)
        return Change(f"{stage_tag(merged)}: {len(changed)} file(s)", operations)

    def _there(self, head: Snapshot) -> Manifest | None:
        there = remote_manifest(self.repo, head)
        if there is None and (foreign := head.foreign(own=[FIGURE])):
            raise BankError(f"{self.repo} holds something other than a bank: {', '.join(foreign)}; push to another repository")
        return there

    def _card(self, head: Snapshot, there: Manifest | None, merged: Manifest, *, last: bool) -> list[Operation]:
        """A new card if there is none, if rows are given, or if a stage was finished and nobody has edited the card."""
        evaluation = self.evaluation if last else Evaluation()
        if not evaluation.rows and there is not None and statuses(there) == statuses(merged):
            return []
        old = self.repo.read(head, CARD).decode(errors="replace") if CARD in head.files else None
        if not evaluation.rows and old is not None and MARK not in old:
            return []
        card = self._model_card(merged, evaluation)
        operations: list[Operation] = [CommitOperationAdd(CARD, card.encode())] if card != old else []
        if evaluation.rows and evaluation.figure is not None:
            operations.append(CommitOperationAdd(FIGURE, str(evaluation.figure)))
        return operations


def push_to_folder(bank: ExpertBank, folder: Path, *, overwrite: bool) -> PushedBank:
    """Copies what is new in `bank` into `folder`. Several may do so at once: the folder gets the files of all.

    Raises:
        ConfigError: `overwrite`. HubConflictError: another bank, or another version of a file, is there.
    """
    if overwrite:
        raise ConfigError(f"overwrite=True is for the Hub; remove the folder {folder} yourself")
    if not is_bank(folder):
        try:
            copy = bank.copy_to(folder)
            return PushedBank(None, stage_tag(copy.manifest), tuple(copy.manifest.files), 1)
        except (BankError, PathError):
            if not is_bank(folder):  # else somebody else's push made it meanwhile
                raise
    target = ExpertBank.open(folder)
    sent: tuple[str, ...] = ()

    def add(there: Manifest) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        nonlocal sent
        merged = merge(there, bank.manifest, str(folder))
        sent = tuple(name for name in merged.files if name not in there.files)
        return {name: bank.read(name) for name in sent}, {name: getattr(merged, name) for name in _MERGED}

    if merge(target.manifest, bank.manifest, str(folder)) != target.manifest:
        target.update(add)
    return PushedBank(None, stage_tag(target.manifest), sent, int(bool(sent)))
