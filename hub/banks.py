"""Expert banks on the Hugging Face Hub, stage by stage.

    push   backbone ──► commit, tag stage-backbone      3 of 8 experts ──► commit, tag stage-experts-3      …      stage-router
    pull   revision ──► sha ──► bank.json ──► the files it lists, or some experts' ──► every sha256 checked ──► ExpertBank

A repository holds the files of a bank's folder, without resume/ and logs/, and a card. `bank.json` lists the sha256 of every
file, so a push sends only files whose hash differs, and a damaged or incomplete repository does not load. If two people push at
the same time, the repository gets the files of both; if a file differs, the later push fails.

A folder may stand wherever an id on the Hub does: a push copies into it, a pull opens it. An id is `namespace/name`; write a
folder of that form as `./namespace/name`. A bank of the package, `builtin:NAME`, can be pulled from and pushed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m3dt_agent import tasks as task_table
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.adding import untrained_experts
from m3dt_agent.bank.builtin import folder_to_write, is_builtin, open_bank
from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.errors import BankError, ConfigError, StageError
from m3dt_agent.hub.bank_pushes import BankPush, Evaluation, PushedBank, push_to_folder
from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.endpoints import is_repo_id
from m3dt_agent.hub.remote_banks import MANIFEST, remote_manifest, require_listed
from m3dt_agent.hub.snapshots import Snapshot
from m3dt_agent.scores import EpisodeResult
from m3dt_agent.system.disk import user_path
from m3dt_agent.tasks import TaskSpec, lookup

__all__ = ["PulledBank", "PushedBank", "pull_bank", "push_bank"]


@dataclass(frozen=True, slots=True)
class PulledBank:
    """A verified bank. sha: the commit it is from; None: it is a folder of its own."""

    bank: ExpertBank
    sha: str | None


# Pulling


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
    """The bank called `name`: an id on the Hub, which is brought into the cache, a folder, or `builtin:NAME`.

    Every file is verified. No request is made for a sha that the cache holds, or, with `offline`, for any revision that was
    pulled before.

    Args:
        revision: a branch, a tag (`stage-backbone`, …) or a sha; None: main.
        experts, tasks: only these experts, or those trained on these tasks; unless that is all of them, without the router.
        to: a new folder for a copy that may be changed, unlike the cache's files and the package's.
        token, endpoint, cache_dir, offline: as `HubRepo` takes them.
        check_folder: how a folder is checked, as in `ExpertBank.open`; files from the Hub are always verified.

    Raises:
        HubError: no such repository or revision, no access, or the Hub cannot be reached.
        BankError: the repository is not a bank, a file is missing or damaged, or the package has no such bank.
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
    elif not is_builtin(name) and not user_path(name).is_dir():
        raise BankError(f"{str(name)!r} is neither a folder nor an id on the Hub (namespace/name)")
    else:
        chosen = selection.of(open_bank(name, check="sizes").manifest)
        check = check_folder if to is None else "sizes"  # a copy is verified while it is made
        bank = open_bank(name, experts=chosen, check=check)
    return PulledBank(bank if to is None else bank.copy_to(to), sha)


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which experts were asked for: by number, by task, or all (both None)."""

    experts: tuple[int, ...] | None
    tasks: tuple[str | TaskSpec, ...] | None

    def of(self, manifest: Manifest) -> tuple[int, ...] | None:
        """Their numbers in this bank; None: all.

        Raises:
            StageError: tasks were asked for, and they are not grouped yet. UnknownTaskError: tasks the bank does not have.
        """
        if self.experts is None and self.tasks is None:
            return None
        chosen = set(self.experts or ())
        names = [task.name for task in task_table.resolve(self.tasks or (), first=map(manifest.task, manifest.all_tasks))]
        grown = {task: expert for growth in manifest.grown for task, expert in growth.groups.items()}
        if manifest.groups is None and any(name not in grown for name in names):
            raise StageError("the bank's tasks are not grouped yet, so no expert serves a task; pull the whole bank")
        chosen |= {lookup({**(manifest.groups or {}), **grown}, name, "task of the bank") for name in names}
        return tuple(sorted(chosen))


def _from_hub(repo: HubRepo, revision: str | None, selection: _Selection) -> tuple[ExpertBank, str]:
    known = repo.cache.sha_of(revision)
    if known is not None and (repo.offline or known == revision):
        bank = _from_cache(repo, known, selection)
        if bank is not None:
            return bank, known
    snapshot = repo.look(revision)
    manifest = remote_manifest(repo, snapshot)
    if manifest is None:
        raise BankError(f"{repo} at {snapshot.sha[:12]} is not a bank: it has no {MANIFEST}; it holds {snapshot.listing()}")
    chosen = selection.of(manifest)
    wanted = (manifest if chosen is None else manifest.with_experts(chosen)).files
    require_listed(repo, snapshot, wanted)
    folder = repo.fetch(snapshot, wanted)
    bank = ExpertBank.open(folder, experts=chosen, read_only=True)
    repo.cache.remember(revision, snapshot.sha)
    return bank, snapshot.sha


def _from_cache(repo: HubRepo, sha: str, selection: _Selection) -> ExpertBank | None:
    """The bank as of `sha`, or None if the cache does not hold all of it; if offline, that and damage are errors."""
    folder = repo.cache.folder(sha)
    if not repo.cache.holds(sha, [MANIFEST]):
        return None
    try:
        manifest = Manifest.from_json(repo.read(Snapshot(sha, {}), MANIFEST), folder / MANIFEST)
        chosen = selection.of(manifest)
        wanted = manifest if chosen is None else manifest.with_experts(chosen)
        if not repo.offline and not repo.cache.holds(sha, wanted.files):
            return None
        return ExpertBank.open(folder, experts=chosen, read_only=True)
    except BankError:
        if repo.offline:
            raise
        return None


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
    """Adds what is new in `bank` to `name`, an id on the Hub or a folder: one commit and one tag for each stage.

    What is there and not in `bank`, such as other people's experts, stays. The bank cannot change meanwhile. Called again after
    a kill or an error, it sends what is missing.

    Args:
        private: for a repository that is created; None: the account's default.
        rows: evaluated episodes of this bank, for the card. policy: which of them are the bank's own, if several could be (as
            in `model_card`). figure: a PNG of them.
        overwrite: make the repository equal to this bank in one commit: replace what differs, remove what this bank does not
            have, and remove the tags of stages that have changed.

    Raises:
        StageError: no backbone yet, or experts by which the bank has grown are not trained yet.
        BankError: a damaged file here or there, a repository of something else, or `name` is a bank of the package.
        HubConflictError: another bank, or another version of a file, is there; the message names it.
        HubError: not allowed, or the Hub cannot be reached.
        ConfigError: rows of another bank, or rows while the repository has experts that this bank does not have.
    """
    opened = bank if isinstance(bank, ExpertBank) else open_bank(bank, check="sizes")
    if "backbone.safetensors" not in opened.manifest.files:
        raise StageError(f"bank {opened.path} has no backbone yet: nothing to push")
    if untrained := untrained_experts(opened.manifest):
        raise StageError(
            f"bank {opened.path} has grown, but its experts {untrained} are not trained yet; train them, or push the bank "
            "without them (bank.without_growth)"
        )
    if not is_repo_id(name):
        return push_to_folder(opened, folder_to_write(name), overwrite=overwrite)
    repo = HubRepo(str(name), "model", token=token, endpoint=endpoint)
    with opened.held():
        return BankPush(repo, opened, Evaluation(tuple(rows), policy, figure), overwrite=overwrite).run(private)
