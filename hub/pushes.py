"""What every push does: open or create the repository, then commit one part after the other.

A part that is there already needs no commit, so a push that was killed is continued by calling it again.
"""

from __future__ import annotations

from collections.abc import Callable

from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.snapshots import Change, Snapshot


class Push:
    """A series of commits to `repo`. head: its newest commit. commits: how many were made so far.

    private: for a repository that is created; None uses the account's default.

    Raises:
        HubError: not allowed, or the Hub cannot be reached.
    """

    def __init__(self, repo: HubRepo, *, private: bool | None) -> None:
        self.repo, self.commits = repo, 0
        head = repo.head()
        if head is None:
            repo.create(private=private)
            head = repo.look()
        self.head: Snapshot = head

    def commit(self, make: Callable[[Snapshot], Change]) -> bool:
        """Commits the change that `make` returns for the newest commit. False: there was nothing to do.

        Raises:
            As `HubRepo.commit`.
        """
        before = self.head.sha
        self.head = self.repo.commit(make, self.head)
        moved = self.head.sha != before
        self.commits += moved
        return moved
