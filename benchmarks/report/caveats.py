"""The notes of a table: errors that make its numbers worthless, and limits of what they show."""

from __future__ import annotations

from collections.abc import Sequence

from m3dt_agent import tasks as task_table
from m3dt_agent.hub.cards.markdown import count

from ..records import CellResult
from .records import UNDERTRAINED, Plan, Table
from .statistics import MIN_SEEDS


def protocol_errors(results: Sequence[CellResult]) -> list[str]:
    """A line for every reason not to compare the cells: different data, or different rules of evaluation."""
    data: dict[str, set[str]] = {}
    rules: dict[tuple[str, str | None, bool], set[str]] = {}
    for result in results:
        if result.facts is not None and "fingerprint" in result.facts.data:
            data.setdefault(str(result.facts.data["fingerprint"]), set()).add(result.cell.method)
        for row in result.final:
            rules.setdefault((row.task, row.reward_version, row.stop_on_success), set()).add(result.cell.method)
    errors = []
    if len(data) > 1:
        which = "; ".join(f"{key[:12]}: {', '.join(sorted(methods))}" for key, methods in sorted(data.items()))
        errors.append(f"ERROR: not all cells were trained on the same data ({which}); their scores do not compare.")
    if differing := sorted({task for task, *_ in rules if sum(key[0] == task for key in rules) > 1}):
        errors.append(
            f"ERROR: episodes of {', '.join(differing)} were not all evaluated by the same rules (reward, early stop)."
        )
    return errors


def caveats(table: Table, plan: Plan, missing: int) -> list[str]:
    """What limits the claims of a table. missing: how many planned cells of its experiment are not finished."""
    notes = []
    if table.scale == "smoke":
        notes.append("Smoke scale: not evidence. The procedure is that of the other scales, the sizes are not.")
    if returns := [name for name in table.tasks if task_table.get(name).score == "return"]:
        notes.append(f"Scored by the return itself, and therefore in no mean: {', '.join(returns)}.")
    if missing:
        notes.append(f"{count(missing, 'planned cell')} of this experiment not finished; the table is of those that are.")
    if any(row.scores.conditional for row in table.rows):
        notes.append(
            f"Intervals marked * are conditional on the trained models: under {MIN_SEEDS} training seeds they come "
            "from the episodes (and the seeds at hand) and do not say how other training seeds would score."
        )
    return notes + _contrast_notes(table, plan)


def _contrast_notes(table: Table, plan: Plan) -> list[str]:
    notes, named = [], [contrast for contrast in table.contrasts if contrast.named]
    if plan.contrast is None:
        notes.append("No contrast was named before the run.")
    elif not named:
        wanted = " against ".join(plan.contrast)
        notes.append(f"The contrast named before the run, {wanted}, is not among these cells, or not with the same seeds.")
    elif len(named) > 1:
        notes.append(f"The contrast named before the run has {len(named)} pairs of rows, corrected by Holm.")
    baselines = {contrast.b for contrast in table.contrasts}
    for row in table.rows:
        if row.gain is not None and row.gain > UNDERTRAINED and row.label in baselines:
            notes.append(
                f"claim not tested: undertrained: {row.label} won {row.gain:.1f} points in its last quarter of training."
            )
        if row.gain is None and row.windows and row.label in {contrast.b for contrast in named}:
            notes.append(f"Whether {row.label} was still improving in its last quarter is not known.")
    return notes
