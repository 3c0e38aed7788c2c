"""The scores that a bank's page shows: from evaluated episodes if there are any, else from the bank's card.

rows given, and *.jsonl beside bank.json ─┬─ of this bank ─► its scores, with intervals
                                          └─ of no bank   ─► those of behavior policies and random actions
README.md, if it is of this very bank ────► whatever of it no row has
measured returns that come with the package ─► the demonstrators' scores, if nothing else has them
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bank import ExpertBank
from ..data.behavior import behavior_table
from ..errors import ConfigError, DatasetError
from ..hub.cards.reading import CardScores, read_card_scores
from ..hub.cards.scores import BEHAVIOR, bank_scores
from ..scores import AGENT_POLICIES, Summary, read_rows, summarize
from ..scores.plots import score_interval
from ..scores.rows import EpisodeResult
from ..system.disk import path_errors
from ..tasks import is_builtin

_MOST_ROW_FILES = 50
_MOST_ROW_BYTES = 200 << 20


@dataclass(frozen=True, slots=True)
class Score:
    """A policy's mean normalized score on one task, the ends of its 95% interval and its success rate where they are known."""

    mean: float
    low: float | None = None
    high: float | None = None
    success: float | None = None
    episodes: int | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """own: the policy whose scores are the bank's; "" if there are none. policies: policy → task → score, the own one first.
    origin: where they are from, in words. missing: what there is not and which command makes it."""

    own: str
    policies: Mapping[str, Mapping[str, Score]]
    origin: str
    missing: tuple[str, ...]

    def of(self, policy: str, task: str) -> Score | None:
        """The score of a policy on a task; None if it is not known."""
        return self.policies.get(policy, {}).get(task)


def scores_of_bank(bank: ExpertBank, name: str, row_files: Sequence[Path]) -> Scores:
    """The scores of `bank` and of others on its tasks.

    name: what commands call the bank. row_files: files of `m3dt eval --rows`, besides those in the bank's folder.

    Raises:
        ConfigError: rows of another bank in one of these files, or episodes that occur twice.
        DatasetError: a file of rows is damaged. PathError: it cannot be read.
    """
    rows = [row for file in row_files for row in read_rows(file)]
    _require_own(rows, bank)
    rows, beside = _and_those_beside(bank, rows)
    names = [task.name for task in bank.tasks]
    rows = [row for row in rows if row.task in names]
    card = read_card_scores(bank.path)
    card = card if card is not None and card.content_hash == bank.content_hash else None
    found: dict[str, dict[str, Score]] = {}
    own, origins = "", []
    if any(row.bank_hash for row in rows):
        measured = bank_scores(bank, rows, _whose(bank, rows, card))
        own = measured.summary.policy
        found = {one.policy: _of_summary(one) for one in (measured.summary, *measured.others.values())}
        among = f", those in {', '.join(beside)} beside bank.json among them" if beside else ""
        origins.append(f"{len(rows):,} evaluated episodes{among}")
    elif rows:
        found = {policy: _of_summary(summarize(of)) for policy, of in _by_policy(rows).items()}
    if card is not None:
        own = own or card.policy
        _fill(found, card, names)
        origins.append("the card of the bank (README.md), as whoever made it measured them")
    if BEHAVIOR not in found and (shipped := _shipped(bank)):
        found[BEHAVIOR] = shipped
        origins.append("those of the behavior policies as measured when they were shipped, without intervals")
    ordered = {policy: found[policy] for policy in dict.fromkeys((own, BEHAVIOR, *found)) if policy in found}
    return Scores(own, ordered, "; ".join(origins), _missing(own, ordered, name))


def _and_those_beside(bank: ExpertBank, rows: Sequence[EpisodeResult]) -> tuple[list[EpisodeResult], list[str]]:
    """These rows and those in files of the bank's folder that hold rows of this bank or of none; the names of the files."""
    found, names = list(rows), []
    seen = {(row.policy, row.bank_hash, row.task, row.seed) for row in rows}
    with path_errors(bank.path):
        files = sorted(bank.path.glob("*.jsonl"))[:_MOST_ROW_FILES]
    for file in files:
        if not file.is_file() or file.stat().st_size > _MOST_ROW_BYTES:
            continue
        try:
            more = read_rows(file)
        except DatasetError:
            continue  # some other file of this ending
        if {row.bank_hash for row in more} <= {"", bank.content_hash}:
            new = [row for row in more if (row.policy, row.bank_hash, row.task, row.seed) not in seen]
            seen |= {(row.policy, row.bank_hash, row.task, row.seed) for row in new}
            found += new
            names.append(file.name)
    return found, names


def _by_policy(rows: Sequence[EpisodeResult]) -> dict[str, list[EpisodeResult]]:
    found: dict[str, list[EpisodeResult]] = {}
    for row in rows:
        found.setdefault(row.policy, []).append(row)
    return found


def _of_summary(summary: Summary) -> dict[str, Score]:
    found = {}
    for name, task in summary.tasks.items():
        if task.on_scale:
            low, high = score_interval(task, summary.runs)
            found[name] = Score(task.mean_score, low, high, task.success_rate, task.episodes)
    return found


def _fill(found: dict[str, dict[str, Score]], card: CardScores, names: Sequence[str]) -> None:
    """Adds what the card knows of these tasks where nothing is known yet."""
    for task, row in card.tasks.items():
        if task not in names:
            continue
        of_task = {policy: Score(value) for policy, value in row.others.items()}
        of_task[card.policy] = Score(row.score, row.low, row.high, row.success, row.episodes)
        for policy, score in of_task.items():
            found.setdefault(policy, {}).setdefault(task, score)


def _shipped(bank: ExpertBank) -> dict[str, Score]:
    """The scores of the expert level of the package's behavior policies, for those tasks where they were measured."""
    infos = behavior_table([task for task in bank.tasks if is_builtin(task)])
    return {info.task.name: Score(info.returns["expert"].normalized) for info in infos if "expert" in info.returns}


def _missing(own: str, found: Mapping[str, Mapping[str, Score]], name: str) -> tuple[str, ...]:
    said, name = [], shlex.quote(name)  # which somebody may paste
    if not own:
        said.append(
            f"No scores of this bank are known. m3dt eval {name} TASK… --rows rows.jsonl measures them, and "
            f"m3dt view {name} --rows rows.jsonl shows them."
        )
    if not any(score.low is not None for score in found.get(BEHAVIOR, {}).values()):
        said.append(
            f"The demonstrators' scores have no intervals. m3dt eval expert TASK… --rows expert.jsonl measures them, and "
            f"m3dt view {name} --rows expert.jsonl shows them."
        )
    return tuple(said)


def _whose(bank: ExpertBank, rows: Sequence[EpisodeResult], card: CardScores | None) -> str:
    """The policy whose rows are the bank's own: what it acts with by default, or its card names, or the first."""
    there = list(dict.fromkeys(row.policy for row in rows if row.bank_hash))
    wanted = [AGENT_POLICIES[bank.default_experts], *([] if card is None else [card.policy]), *there]
    return next(policy for policy in wanted if policy in there)


def _require_own(rows: Sequence[EpisodeResult], bank: ExpertBank) -> None:
    """Checks that rows that were named are of this bank, or of none."""
    if foreign := sorted({row.bank_hash for row in rows} - {"", bank.content_hash}):
        raise ConfigError(f"these rows are of another bank, {foreign[0][:12]}…; this one is {bank.content_hash[:12]}…")
