"""Publishes a run of the experiment "pretrained": the bank that acted, its card, and its episodes.

    <run>  ─►  m3dt_agent/assets/banks/mt160/    bank.json, the weights, README.md (the card)
           ─►  benchmarks/results/<name>/cells/  cell.json and episodes of every finished cell

The card's scores are those of the experts that an agent of the bank acts with by default; the other actors stand beside them.
For the five tasks that are furthest below their behavior policy, the card also says at which step most of the score is lost:

    behavior policy ─ data ─► demonstrations ─ experts ─► own group's expert alone ─ router ─► score
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.builtin import PREFIX
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.cards import model_card
from m3dt_agent.hub.cards.markdown import table
from m3dt_agent.model import Routing
from m3dt_agent.scores import EpisodeResult, TaskSummary, summarize
from m3dt_agent.system.disk import replace_folder, restore_replaced, scratch_folder, write_file

from ..records import CellResult, read_run

WORST = 5
"""How many tasks the section on weak tasks has."""
_LOSSES = (
    f"The {WORST} tasks furthest below their behavior policy, from it over its demonstrations (also noisy ones) and the "
    "expert of the task's own group alone to the score, and at which step most is lost: data, experts (their capacity or "
    "training) or router; noise, if none of it is more than half the interval of the score."
)


def publish_bank(run: Path, bank_folder: Path, results: Path, notes: Sequence[str] = (), *, version: str = "") -> ExpertBank:
    """Puts the bank that acted, with its card, into `bank_folder` and the finished cells into `results`.

    What was there before is replaced; if something fails or the process is killed, it is still there or comes back at the next
    call.

    Args:
        run: folder of a run of "pretrained".
        notes: sections of the card that follow its scores.
        version: of the bank, in its manifest.

    Raises:
        DatasetError: no finished cell of the run acted with a bank, or that bank is gone.
    """
    restore_replaced(bank_folder.parent)
    restore_replaced(results / "cells")
    finished = [result for result in read_run(run) if result.final]
    source = _acting_bank(run, finished)
    with scratch_folder(bank_folder.parent) as staged:
        built = staged / bank_folder.name
        bank = ExpertBank.open(source).copy_to(built, version=version)
        own = "bank-routed" if isinstance(M3DTAgent.load(built).experts, Routing) else "bank-mixture"
        episodes = list(_card_episodes(finished, bank.content_hash))
        sections = [*_losses(finished, own), *notes]
        card = model_card(bank, f"{PREFIX}{bank_folder.name}", rows=episodes, policy=own, notes=sections)
        write_file(built / "README.md", card.encode())
        replace_folder(built, bank_folder)
    for result in finished:
        with scratch_folder(results / "cells") as staged:
            built = staged / result.cell.id
            shutil.copytree(run / result.cell.id, built, ignore=shutil.ignore_patterns("work", ".lock"))
            replace_folder(built, results / "cells" / result.cell.id)
    return ExpertBank.open(bank_folder)


def _acting_bank(run: Path, finished: Sequence[CellResult]) -> Path:
    """The bank of the first training that the cells acted with."""
    hashes = [row.bank_hash for result in finished if "later_seed" not in result.cell.settings for row in result.final[:1]]
    for manifest in sorted(run.glob("shared/*/bank.json")):
        bank = ExpertBank.open(manifest.parent, check="sizes")
        if bank.content_hash in hashes:
            return bank.path
    raise DatasetError(f"{run} holds no bank that acted in one of its {len(finished)} finished cells; run `pretrained` first")


def _card_episodes(finished: Sequence[CellResult], bank_hash: str) -> Iterator[EpisodeResult]:
    """The episodes that belong on the bank's card: its own, and those of policies without a bank."""
    for result in finished:
        if result.final[0].bank_hash in ("", bank_hash):
            yield from result.final


def _losses(finished: Sequence[CellResult], own: str) -> list[str]:
    """The card's section on where the worst tasks lose their points; nothing if the run lacks an actor that it needs."""
    cells = {result.cell.method: result for result in finished if "later_seed" not in result.cell.settings}
    if not {"behavior", "bank-oracle", own} <= set(cells) or (facts := cells[own].facts) is None:
        return []
    behavior, expert, acting = (summarize(cells[method].final).tasks for method in ("behavior", "bank-oracle", own))
    worst = sorted(acting, key=lambda name: acting[name].mean_score - behavior[name].mean_score)[:WORST]
    demonstrations = {name: float(facts.data["tasks"][name]["mean_score"]) for name in worst}
    lines = [_loss(name, behavior, demonstrations, expert, acting) for name in worst]
    header = ("task", "behavior policy", "demonstrations", "own expert alone", "score", "half its interval", "lost by")
    return ["### Why the worst are weak", _LOSSES, table(header, lines)]


def _loss(
    name: str,
    behavior: Mapping[str, TaskSummary],
    demonstrations: Mapping[str, float],
    expert: Mapping[str, TaskSummary],
    acting: Mapping[str, TaskSummary],
) -> list[str]:
    """A task's line: its scores on the way from the behavior policy to the agent, and the step that loses most."""
    way = [behavior[name].mean_score, demonstrations[name], expert[name].mean_score, acting[name].mean_score]
    lost = {step: above - below for step, above, below in zip(("data", "experts", "router"), way, way[1:], strict=False)}
    low, high = acting[name].success_interval or acting[name].score_interval
    noise = (high - low) / 2 * (100.0 if acting[name].success_interval else 1.0)
    most = max(lost, key=lambda step: lost[step])
    return [name, *(f"{score:.1f}" for score in way), f"{noise:.1f}", most if lost[most] > noise else "noise"]
