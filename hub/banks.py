"""Expert banks on the Hugging Face Hub, stage by stage.

    push   backbone ──► commit, tag stage-backbone      3 of 8 experts ──► commit, tag stage-experts-3      …      stage-router
    pull   revision ──► sha ──► bank.json ──► the files it lists, or some experts' ──► every sha256 checked ──► ExpertBank

A repository holds what a bank's folder holds (without resume/ and logs/), and a card. `bank.json` vouches for every byte, so a
push moves only files whose hash differs, and a damaged or incomplete repository does not load. Two who push at the same time
are merged: the files of both, as long as none differs; what differs is an error for whoever comes second.

A folder works wherever an id on the Hub does: pushing copies into it, pulling opens it. An id is `namespace/name`; write a
folder of that form as `./namespace/name`. What comes with the package is `builtin:NAME`, to pull from and to push.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from m3dt_agent import tasks as task_table
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.builtin import folder_to_write, is_builtin, open_bank
from m3dt_agent.bank.manifest import Manifest, is_bank_file
from m3dt_agent.bank.tensor_files import FileRecord
from m3dt_agent.errors import BankError, ConfigError, StageError
from m3dt_agent.hub.bank_stages import merge, stage_manifests, stage_tag, statuses
from m3dt_agent.hub.cards import MARK, model_card
from m3dt_agent.hub.client import Change, HubRepo, Operation, RemoteFile, Snapshot, is_repo_id
from m3dt_agent.scores import EpisodeResult
from m3dt_agent.tasks import TaskSpec, lookup

_MANIFEST, _CARD, _FIGURE = "bank.json", "README.md", "scores.png"
_NEUTRAL = {".gitattributes", ".gitignore", "LICENSE", _CARD, _FIGURE}
"""Files that say nothing about whose repository it is."""


@dataclass(frozen=True, slots=True)
class PulledBank:
    """A bank, verified. sha: the commit it is from; None: it is a folder of its own."""

    bank: ExpertBank
    sha: str | None


@dataclass(frozen=True, slots=True)
class PushedBank:
    """What a push did. sha: the head now (None: a folder); tag: the stage it stands for; files: those that travelled."""

    sha: str | None
    tag: str
    files: tuple[str, ...]
    commits: int


def pull_bank(
    name: str | Path,
    revision: str | None = None,
    *,
    experts: Iterable[int] | None = None,
    tasks: Iterable[str | TaskSpec] | None = None,
    to: str | Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    check_folder: Literal["contents", "sizes"] = "contents",
) -> PulledBank:
    """The bank called `name`: an id on the Hub, brought into the cache, a folder, or `builtin:NAME`; every file verified.

    A sha that the cache holds, and with `offline` any revision that was pulled before, is opened without a request.

    Args:
        revision: branch, tag (`stage-backbone`, …) or sha; None: main.
        experts, tasks: only these experts, or those that serve these tasks; no router then, unless they are all.
        to: a new folder for a copy to work in; the cache's own files, and the package's, must stay as they are.
        token, endpoint, cache_dir, offline: as `HubRepo` takes them.
        check_folder: what of a folder's files is looked at now, as `ExpertBank.open` has it; those from the Hub are verified.

    Raises:
        HubError: no such repository or revision, no access, or a failing Hub.
        BankError: the repository is no bank, a file is missing or damaged, or no such bank comes with the package.
        ConfigError: a folder with a revision, or experts it does not have. UnknownTaskError: tasks it does not have.
        StageError: `tasks` before they are grouped. DiskSpaceError: no room.
    """
    sha = None
    selection = _Selection(None if experts is None else tuple(experts), None if tasks is None else tuple(tasks))
    if is_repo_id(name):
        repo = HubRepo(str(name), "model", token=token, endpoint=endpoint, cache_dir=cache_dir, offline=offline)
        bank, sha = _from_hub(repo, revision, selection)
    elif revision is not None:
        raise ConfigError(f"revision={revision!r}: the local bank {str(name)!r} has no revisions")
    elif not is_builtin(name) and not Path(name).is_dir():
        raise BankError(f"{str(name)!r} is neither a folder nor an id on the Hub (namespace/name)")
    else:
        bank = open_bank(name, check=check_folder)
        if (chosen := selection.of(bank.manifest)) is not None:
            bank = open_bank(name, experts=chosen, check=check_folder)
    return PulledBank(bank if to is None else bank.copy_to(to), sha)


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which experts were asked for: by number, by task, or all (both None)."""

    experts: tuple[int, ...] | None
    tasks: tuple[str | TaskSpec, ...] | None

    def of(self, manifest: Manifest) -> tuple[int, ...] | None:
        if self.experts is None and self.tasks is None:
            return None
        chosen = set(self.experts or ())
        names = [task.name for task in task_table.resolve(self.tasks or ())]
        if names and manifest.groups is None:
            raise StageError("the bank's tasks are not grouped yet, so no expert serves a task; pull it whole")
        chosen |= {lookup(manifest.groups or {}, name, "task of the bank") for name in names}
        return tuple(sorted(chosen))


def _from_hub(repo: HubRepo, revision: str | None, selection: _Selection) -> tuple[ExpertBank, str]:
    known = repo.cached_sha(revision)
    if known is not None and (repo.offline or known == revision):
        bank = _from_cache(repo, known, selection)
        if bank is not None:
            return bank, known
    snapshot = repo.look(revision)
    manifest = _remote_manifest(repo, snapshot)
    if manifest is None:
        held = ", ".join(sorted(snapshot.files)[:6]) or "nothing"
        raise BankError(f"{repo} at {snapshot.sha[:12]} is not a bank: it has no {_MANIFEST}; it holds {held}")
    chosen = selection.of(manifest)
    wanted = (manifest if chosen is None else manifest.with_experts(chosen)).files
    _require_there(repo, snapshot, wanted)
    folder = repo.fetch(snapshot, wanted)
    bank = ExpertBank.open(folder, experts=chosen, read_only=True)
    repo.remember(revision, snapshot.sha)
    return bank, snapshot.sha


def _from_cache(repo: HubRepo, sha: str, selection: _Selection) -> ExpertBank | None:
    """The bank as of `sha` if the cache holds it whole; a damaged one is an error if it cannot be fetched again."""
    folder = repo.folder(sha)
    if not repo.cached(sha, [_MANIFEST]):
        return None
    try:
        manifest = Manifest.from_json((folder / _MANIFEST).read_text(), folder / _MANIFEST)
        chosen = selection.of(manifest)
        wanted = manifest if chosen is None else manifest.with_experts(chosen)
        return (
            ExpertBank.open(folder, experts=chosen, read_only=True) if repo.cached(sha, wanted.files) or repo.offline else None
        )
    except (BankError, UnicodeDecodeError):
        if repo.offline:
            raise
        return None


def _remote_manifest(repo: HubRepo, snapshot: Snapshot) -> Manifest | None:
    if _MANIFEST not in snapshot.files:
        return None
    folder = repo.fetch(snapshot, [_MANIFEST])
    where = Path(f"{repo.repo_id}@{snapshot.sha[:12]}", _MANIFEST)
    try:
        return Manifest.from_json((folder / _MANIFEST).read_text(), where)
    except UnicodeDecodeError as error:
        raise BankError(f"{where} is damaged or foreign: {error}") from error


def _require_there(repo: HubRepo, snapshot: Snapshot, files: Mapping[str, FileRecord]) -> None:
    """Before anything is downloaded: the repository holds what its bank.json lists, as far as the Hub's listing tells."""
    where = f"{repo} at {snapshot.sha[:12]}"
    if missing := sorted(set(files) - set(snapshot.files)):
        raise BankError(f"{where} is damaged: its {_MANIFEST} lists {', '.join(missing)}, which it does not hold")
    if wrong := [name for name, record in files.items() if not _may_be(snapshot.files[name], record)]:
        raise BankError(f"{where} is damaged: {', '.join(sorted(wrong))} is not what its {_MANIFEST} lists")


def _may_be(remote: RemoteFile, record: FileRecord) -> bool:
    return remote.size == record.bytes and remote.sha256 in (None, record.sha256)


# Pushing


def push_bank(
    bank: ExpertBank | str | Path,
    name: str | Path,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    private: bool | None = None,
    rows: Sequence[EpisodeResult] = (),
    policy: str | None = None,
    figure: Path | None = None,
    overwrite: bool = False,
) -> PushedBank:
    """Brings `name`, an id on the Hub or a folder, up to what `bank` has: one commit and one tag per stage that is new there.

    What is there already and not here (others' experts) stays. The bank cannot change meanwhile. Called again after a kill or
    an error, it does what is missing.

    Args:
        private: of a repository that is made; None: the account's default.
        rows: evaluated episodes of this very bank, for the card. policy: which of them are the bank's own, where several could
            be (as `model_card` takes it). figure: a PNG of them.
        overwrite: make the repository this bank, in one commit: what differs is replaced, what this bank does not have is
            removed, and so are the tags of stages that are no longer what they were.

    Raises:
        StageError: no backbone yet. BankError: a damaged file here or there, a repository of something else, or a bank that
            comes with the package as the place to push to.
        HubConflictError: another bank, or another version of a file, is there; the message names it.
        HubError: not allowed, or a failing Hub. ConfigError: rows of another bank, or experts there that this bank has not got.
    """
    opened = bank if isinstance(bank, ExpertBank) else open_bank(bank)
    if "backbone.safetensors" not in opened.manifest.files:
        raise StageError(f"bank {opened.path} has no backbone yet: nothing to push")
    if not is_repo_id(name):
        return _push_to_folder(opened, folder_to_write(name), overwrite)
    repo = HubRepo(str(name), "model", token=token, endpoint=endpoint)
    with opened.held():
        return _Push(repo, opened, _Evaluation(tuple(rows), policy, figure), overwrite).run(private)


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What the card is to say of the bank's scores; nothing without rows."""

    rows: tuple[EpisodeResult, ...] = ()
    policy: str | None = None
    figure: Path | None = None


class _Push:
    """One bank on its way to one repository."""

    def __init__(self, repo: HubRepo, bank: ExpertBank, evaluation: _Evaluation, overwrite: bool) -> None:
        self.repo, self.bank, self.evaluation, self.overwrite = repo, bank, evaluation, overwrite
        self.merged = bank.manifest  # of the newest commit
        self.files: tuple[str, ...] = ()  # of the change in hand

    def run(self, private: bool | None) -> PushedBank:
        self._model_card(self.bank.manifest, self.evaluation)
        head = self.repo.head()
        if head is None:
            self.repo.create(private=private)
            head = self.repo.look()
        self._check_rows(head)
        tags, commits = self.repo.tags(), 0
        sent: tuple[str, ...] = ()
        parts = stage_manifests(self.bank.manifest)
        if self.overwrite and (there := self._there(head)) is not None:
            self._forget_replaced(there, parts, tags)
            parts = parts[-1:]  # in one commit: new backbones must not stand beside experts of the old, not even for a moment
        for part in parts:
            last, before = part is parts[-1], head.sha
            head = self.repo.commit(lambda head, part=part, last=last: self._change(head, part, last=last), head)  # type: ignore[misc]
            if head.sha != before:
                sent, commits = (*sent, *self.files), commits + 1
            if head.sha != before or stage_tag(self.merged) not in tags:
                self.repo.set_tag(stage_tag(self.merged), head.sha, tags)
        return PushedBank(head.sha, stage_tag(self.merged), sent, commits)

    def _forget_replaced(self, there: Manifest, parts: Sequence[Manifest], tags: dict[str, str]) -> None:
        """Removes the tags of stages that will not be what they were."""
        kept = {stage_tag(part) for part in parts if part.files.items() <= there.files.items()}
        more = "stage-experts" in kept or any(tag.startswith("stage-experts-") for tag in kept)
        for tag in [tag for tag in tags if tag.startswith("stage-") and tag not in kept]:
            if not (more and tag.startswith("stage-experts-")):  # of fewer experts, which are the same
                self.repo.remove_tag(tag, tags)

    def _check_rows(self, head: Snapshot) -> None:
        """Rows of another bank than the one that will be there are refused before anything travels."""
        there = self._there(head) if self.evaluation.rows and not self.overwrite else None
        if there is not None and (others := set(there.files) - set(self.bank.manifest.files)):
            raise ConfigError(
                f"{self.repo} has {', '.join(sorted(others))} besides what this bank has, so rows of this bank are not rows of "
                "what will be there; pull it, evaluate that, and push its rows"
            )

    def _model_card(self, manifest: Manifest, evaluation: _Evaluation) -> str:
        figure = _FIGURE if evaluation.figure is not None else None
        bank = ExpertBank(self.bank.path, manifest)
        return model_card(bank, self.repo.repo_id, rows=evaluation.rows, policy=evaluation.policy, figure=figure)

    def _change(self, head: Snapshot, part: Manifest, *, last: bool) -> Change:
        """What has to be done to the head so that it holds `part` too."""
        there = self._there(head)
        replace = self.overwrite and last
        merged = part if there is None or replace else merge(there, part, str(self.repo))
        changed = [name for name, record in merged.files.items() if not _is_there(name, record, head, there)]
        if lost := [name for name in changed if self.bank.manifest.files.get(name) != merged.files[name]]:
            raise BankError(
                f"{self.repo} is damaged: its {_MANIFEST} lists {', '.join(lost)}, which neither it nor this bank holds; "
                "overwrite=True makes it this bank"
            )
        operations: list[Operation] = [CommitOperationAdd(name, str(self.bank.path / name)) for name in changed]
        if replace:
            stale = [name for name in head.files if is_bank_file(name) and name not in merged.files]
            operations += [CommitOperationDelete(name) for name in stale]
        if operations or merged != there:
            operations.append(CommitOperationAdd(_MANIFEST, merged.to_json().encode()))
        operations += self._card(head, there, merged, last=last)
        self.merged = merged
        if operations:  # none: what was sent before has arrived
            self.files = tuple(operation.path_in_repo for operation in operations)
        return Change(f"{stage_tag(merged)}: {len(changed)} file(s)", operations)

    def _there(self, head: Snapshot) -> Manifest | None:
        there = _remote_manifest(self.repo, head)
        if there is None and (foreign := sorted(set(head.files) - _NEUTRAL)):
            raise BankError(
                f"{self.repo} holds something else than a bank: {', '.join(foreign[:6])}; push to another repository"
            )
        return there

    def _card(self, head: Snapshot, there: Manifest | None, merged: Manifest, *, last: bool) -> list[Operation]:
        """The card: where there is none, where rows are given, where a stage was finished and nobody wrote one by hand."""
        evaluation = self.evaluation if last else _Evaluation()
        if not evaluation.rows and there is not None and statuses(there) == statuses(merged):
            return []
        old = (self.repo.fetch(head, [_CARD]) / _CARD).read_text(errors="replace") if _CARD in head.files else None
        if not evaluation.rows and old is not None and MARK not in old:
            return []
        card = self._model_card(merged, evaluation)
        operations: list[Operation] = [CommitOperationAdd(_CARD, card.encode())] if card != old else []
        if evaluation.rows and evaluation.figure is not None:
            operations.append(CommitOperationAdd(_FIGURE, str(evaluation.figure)))
        return operations


def _is_there(name: str, record: FileRecord, head: Snapshot, there: Manifest | None) -> bool:
    remote = head.files.get(name)
    if remote is None or there is None or not _may_be(remote, record):
        return False
    return remote.sha256 is not None or there.files.get(name) == record


def _push_to_folder(bank: ExpertBank, folder: Path, overwrite: bool) -> PushedBank:
    if overwrite:
        raise ConfigError(f"overwrite=True is for the Hub; remove the folder {folder} yourself")
    if not (folder / _MANIFEST).exists():
        copy = bank.copy_to(folder)
        return PushedBank(None, stage_tag(copy.manifest), tuple(copy.manifest.files), 1)
    target = ExpertBank.open(folder)
    merged = merge(target.manifest, bank.manifest, str(folder))
    changed = tuple(name for name in merged.files if name not in target.manifest.files)
    if merged != target.manifest:
        fields: dict[str, Any] = {name: getattr(merged, name) for name in ("groups", "grouping", "stages")}
        target.commit({name: bank.read(name) for name in changed}, **fields)
    return PushedBank(None, stage_tag(merged), changed, int(bool(changed)))
