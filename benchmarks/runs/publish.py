"""From a run of the experiment "pretrained" to the bank in the package: the bank that acted, its card, its rows.

    <run>  ─►  m3dt_agent/assets/banks/mt160/    bank.json, the weights, README.md (the card)
           ─►  benchmarks/results/<name>/cells/  cell.json and rows of every finished cell

The card's scores are those of what an agent of the bank acts with unless told otherwise; the other actors stand beside them.
For the five tasks that are furthest below their behavior policy it says where most is lost on the way from there to the score:

    behavior policy ─ data ─► demonstrations ─ experts ─► own group's expert alone ─ router ─► score
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.builtin import PREFIX
from m3dt_agent.disk import write_file
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.cards import model_card
from m3dt_agent.hub.cards.markdown import table
from m3dt_agent.model import Routing
from m3dt_agent.scores import EpisodeResult, summarize

from ..records import CellResult, read_run

WORST = 5


def ship(run: Path, bank_folder: Path, results: Path, notes: Sequence[str] = ()) -> ExpertBank:
    """Puts the bank, its card and its rows where they are committed; what was there is replaced.

    notes: sections of the card after its scores.

    Raises:
        DatasetError: nobody has acted with a bank in this run yet, or the bank that did is gone.
    """
    finished = [result for result in read_run(run) if result.final]
    source = _acting_bank(run, finished)
    staged = bank_folder.with_name(f".{bank_folder.name}-new")
    shutil.rmtree(staged, ignore_errors=True)
    bank = ExpertBank.open(source).copy_to(staged)
    own = "bank-routed" if isinstance(M3DTAgent.load(staged).experts, Routing) else "bank-mixture"
    rows = list(_rows(finished, bank.content_hash))
    card = model_card(bank, f"{PREFIX}{bank_folder.name}", rows=rows, policy=own, notes=[*_losses(finished, own), *notes])
    write_file(staged / "README.md", card.encode())
    shutil.rmtree(bank_folder, ignore_errors=True)
    staged.rename(bank_folder)
    for result in finished:
        target = results / "cells" / result.cell.id
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(run / result.cell.id, target, ignore=shutil.ignore_patterns("work", ".lock"))
    return ExpertBank.open(bank_folder)


def _acting_bank(run: Path, finished: Sequence[CellResult]) -> Path:
    """The bank of the first training that the cells acted with."""
    hashes = [row.bank_hash for result in finished if "later_seed" not in result.cell.settings for row in result.final[:1]]
    for manifest in sorted(run.glob("shared/*/bank.json")):
        bank = ExpertBank.open(manifest.parent, check="sizes")
        if bank.content_hash in hashes:
            return bank.path
    raise DatasetError(f"{run} holds no bank that acted in one of its {len(finished)} finished cells; run `pretrained` first")


def _losses(finished: Sequence[CellResult], own: str) -> list[str]:
    """A section of the card on where the worst tasks lose their points; nothing if an actor that it takes is missing."""
    cells = {result.cell.method: result for result in finished if "later_seed" not in result.cell.settings}
    if not {"behavior", "bank-oracle", own} <= set(cells) or (facts := cells[own].facts) is None:
        return []
    behavior, expert, acting = (summarize(cells[method].final).tasks for method in ("behavior", "bank-oracle", own))
    worst = sorted(acting, key=lambda name: acting[name].mean_score - behavior[name].mean_score)[:WORST]
    rows = []
    for name in worst:
        demonstrations = float(facts.data["tasks"][name]["mean_score"])
        way = [behavior[name].mean_score, demonstrations, expert[name].mean_score, acting[name].mean_score]
        lost = {what: above - below for what, above, below in zip(("data", "experts", "router"), way, way[1:], strict=False)}
        low, high = acting[name].success_interval or acting[name].score_interval
        noise = (high - low) / 2 * (100.0 if acting[name].success_interval else 1.0)
        most = max(lost, key=lambda what: lost[what])
        rows.append([name, *(f"{score:.1f}" for score in way), f"{noise:.1f}", most if lost[most] > noise else "noise"])
    text = (
        f"The {WORST} tasks furthest below their behavior policy, from it over its demonstrations (also noisy ones) and the "
        "expert of the task's own group alone to the score, and at which step most is lost: data, experts (their capacity or "
        "training) or router; noise, if none of it is more than half the interval of the score."
    )
    header = ("task", "behavior policy", "demonstrations", "own expert alone", "score", "half its interval", "lost by")
    return ["### Why the worst are weak", text, table(header, rows)]


def _rows(finished: Sequence[CellResult], bank_hash: str) -> Iterator[EpisodeResult]:
    """The episodes that belong on the bank's card: its own, and those of policies without a bank."""
    for result in finished:
        if result.final[0].bank_hash in ("", bank_hash):
            yield from result.final
