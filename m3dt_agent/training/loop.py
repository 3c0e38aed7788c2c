"""The one training loop: a run to its end, step by step (trainer.py), with logs and checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from .checkpoint import newest_checkpoint, write_checkpoint
from .distributed import ALONE, World
from .logs import OnLog, RunLog, announce
from .run import Run
from .trainer import Trainer


def train(
    run: Run,
    bank: Path,
    *,
    device: str | torch.device,
    threads: int,
    progress: bool | None = None,
    on_log: OnLog | None = None,
    world: World = ALONE,
) -> None:
    """Trains `run` to its end, from its newest checkpoint if there is one; on return a checkpoint holds the final state, and
    worker 0's model the weights for the bank.

    Args:
        bank: the folder that gets checkpoints and logs.
        world: the workers, which all call this; worker 0 reads and writes checkpoints and logs, and calls `on_log`.

    Raises:
        BankError: every checkpoint is damaged.
        InvalidValueError: the loss is NaN or infinite; no checkpoint contains it.
        DiskSpaceError: no room for a checkpoint; the last one is kept.
        ConfigError: fewer windows in a batch than workers.
        WorkerError: another worker failed or is lost.
    """
    trainer = Trainer(run, device, world)
    world.from_main(lambda: _restore_newest(trainer, bank, progress))
    if world.size > 1:
        trainer.follow_main()
    if not world.is_main:
        while not trainer.is_over:
            trainer.step()
        return
    config = run.config
    with RunLog(
        bank,
        run.name,
        config.stage,
        experts=run.experts,
        step=trainer.step_count,
        steps=config.steps,
        progress=progress,
    ) as log:
        while not trainer.is_over:
            trainer.step()
            log.advance()
            if trainer.step_count % config.log_every == 0 or trainer.is_over:
                record = trainer.report()
                log.write(record)
                if on_log is not None:
                    on_log(record)
            if trainer.step_count % config.checkpoint_every == 0 or trainer.is_over:
                trainer.require_finite()
                log.flush()
                write_checkpoint(bank, trainer.state(threads), trainer.tensors())
    trainer.finish()


def _restore_newest(trainer: Trainer, bank: Path, progress: bool | None) -> None:
    name = trainer.run.name
    checkpoint, problems = newest_checkpoint(bank, name)
    for problem in problems:
        announce(f"a checkpoint is damaged, using the one before it: {problem}", progress)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        announce(f"{name}: continuing from step {trainer.step_count:,}", progress)
