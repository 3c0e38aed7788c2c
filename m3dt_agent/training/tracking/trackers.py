"""The trackers that `fit_stage` and `m3dt train --track` know by name; each is imported when a run starts.

tensorboard  <bank>/logs/tensorboard/<run>/          `tensorboard --logdir <bank>/logs/tensorboard` shows it
wandb        <bank>/logs/wandb/, and W&B's server    WANDB_MODE=offline: only the files, for `wandb sync`
trackio      Trackio's own folder (TRACKIO_DIR)      `trackio show --project m3dt` shows it
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...config.checks import require_instance
from ...errors import ConfigError, MissingDependencyError
from ...system.disk import own_path
from ...system.machine import is_quiet
from .tracker import Guarded, TrackedRun, Tracker

PROJECT = "m3dt"
"""The project at W&B, unless WANDB_PROJECT names another, and in Trackio."""


class TensorBoard:
    """Event files, written by torch."""

    name = "tensorboard"

    def start(self, run: TrackedRun) -> None:
        _require("tensorboard")
        self._folder = own_path(run.folder, f"tensorboard/{run.name}")
        self._run, self._step = run, 0
        self._writer: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        writer = self._open(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        self._step = step

    def finish(self, results: Mapping[str, str]) -> None:
        writer = self._open(self._step)
        for name, value in results.items():
            writer.add_text(name, value, self._step)
        writer.close()

    def _open(self, step: int) -> Any:
        """The writer. `purge_step` hides what an interrupted run wrote after the checkpoint from which it continues."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=step)
            self._writer.add_text("config", f"```json\n{json.dumps(self._run.config, indent=2)}\n```", step)
        return self._writer


class WandB:
    """A run at Weights & Biases. The machine, the terminal, the code and its git repository are not looked at."""

    name = "wandb"

    def start(self, run: TrackedRun) -> None:
        _require("wandb")
        import wandb

        online = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
        if online and not wandb.login(prompt=False):
            raise ConfigError("no API key is known; run `wandb login`, or set WANDB_MODE=offline")
        own_path(run.folder, "wandb").mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", run.folder),
            id=f"{run.experiment}-{run.name}",
            name=f"{run.experiment} {run.name}",
            group=run.experiment,
            config=dict(run.config),
            resume="allow" if online else None,
            reinit="create_new",  # a run of the caller's own goes on
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                silent=is_quiet(),
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, results: Mapping[str, str]) -> None:
        self._run.summary.update(dict(results))
        self._run.finish()


class Trackio:
    """A run in Trackio's local database, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    name = "trackio"

    def start(self, run: TrackedRun) -> None:
        _require("trackio")
        import trackio

        self._step = 0
        self._run = trackio.init(
            project=PROJECT,
            name=f"{run.experiment} {run.name}",
            group=run.experiment,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)
        self._step = step

    def finish(self, results: Mapping[str, str]) -> None:
        self._run.log(dict(results), step=self._step)
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (TensorBoard, WandB, Trackio)}


Trackers = str | Sequence[str | Tracker | Guarded]
"""What functions that train take: names of `TRACKERS`, also as one text with commas, and trackers of your own."""


def make_trackers(trackers: Trackers, progress: bool | None = None) -> tuple[Guarded, ...]:
    """Guarded trackers: of these names, or around these. A guarded one stays what it is, so that it speaks up only once.

    Args:
        progress: as `fit_stage` takes it.

    Raises:
        ConfigError: a name that is none of `TRACKERS`, or comes twice, or something that is no tracker.
    """
    given = [name.strip() for name in trackers.split(",")] if isinstance(trackers, str) else trackers
    require_instance("trackers", given, Sequence)
    names = [one for one in given if isinstance(one, str)]
    for name in names:
        if name not in TRACKERS or names.count(name) > 1:
            raise ConfigError(f"trackers are some of {', '.join(TRACKERS)}, each once; got {name!r} in {','.join(names)!r}")
    made = (TRACKERS[one]() if isinstance(one, str) else one for one in given)
    return tuple(one if isinstance(one, Guarded) else Guarded(one, progress) for one in made)


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(f"{package} is not installed: pip install 'm3dt-agent[{package}]'")
