"""`m3dt play`: one episode of one task, with the bank of the package unless another is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import EvalConfig
from .shared.acting import Acting
from .shared.options import (
    ActingExperts,
    ActingPrecision,
    AsJson,
    Device,
    MaxExperts,
    PromptFrom,
    ReturnToGoMode,
    RoutingMass,
    Source,
    StopOnSuccess,
    path_option,
)
from .shared.output import emit, make_table, quiet_stdout

if TYPE_CHECKING:
    from ..evaluation.one_episode import Played

DEFAULT_BANK = "builtin:mt160"


def play_command(
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    bank: Annotated[str, path_option(help="A bank: a folder, or builtin:NAME.")] = DEFAULT_BANK,
    seed: Annotated[int, typer.Option(help="Seed of the episode.")] = EvalConfig().seed,
    experts: ActingExperts = None,
    routing_mass: RoutingMass = None,
    max_experts: MaxExperts = None,
    precision: ActingPrecision = "float32",
    stop_on_success: StopOnSuccess = False,
    rtg_mode: ReturnToGoMode = "rewards",
    video: Annotated[
        Path | None, path_option(help="Also record it as .gif, .webp or .mp4; MUJOCO_GL chooses the renderer.")
    ] = None,
    prompt_from: PromptFrom = None,
    source: Source = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Play one episode and print its return, score and success, and how fast the agent decides."""
    from ..bank.builtin import open_bank
    from ..evaluation.one_episode import play

    acting = Acting.from_options(experts, routing_mass, max_experts, precision, device, prompt_from, source)
    with quiet_stdout():
        agent = acting.load(open_bank(bank, check="sizes"), [task])
        played = play(agent, task, seed=seed, stop_on_success=stop_on_success, rtg_mode=rtg_mode, video=video)
    cells = list(_cells(played).items())
    emit(dataclasses.asdict(played), as_json=as_json, table=make_table(f"{played.task}, seed {seed}", ("", ""), cells, left=2))


def _cells(played: Played) -> dict[str, str]:
    cells = {
        "policy": f"{played.policy}, of bank {played.bank_hash[:12]}…",
        "return": f"{played.episode_return:.2f}",
        "normalized score": f"{played.normalized_score:.1f}",
        "success": {True: "yes", False: "no", None: "-"}[played.success],
        "length": f"{played.length} steps",
        "speed": f"{played.decisions_per_second:.1f} decisions a second",
    }
    return cells if played.video is None else cells | {"video": played.video}
