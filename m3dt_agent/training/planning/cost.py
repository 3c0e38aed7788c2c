"""How long a stage will take and how much disk space it will need, estimated before it starts.

Time: a few real training steps are measured, on random data and random weights of the real shapes, and multiplied by the number
of steps. Disk space is counted: a checkpoint holds three floats per trained parameter (itself and AdamW's two moments), `KEPT`
checkpoints stay while one more is written, and the bank's new file is written while the old one is still there.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ...config import STAGE_CONFIGS, ExpertsConfig, ModelConfig, Stage, TrainConfig, stage_name
from ...config.checks import require_instance
from ...data.batches import Batch, Window
from ...errors import DiskSpaceError
from ...model import M3DT
from ...model.determinism import cpu_threads
from ...system.machine import duration, torch_device
from ..checkpoint import KEPT
from ..run import Run
from ..trainer import Trainer
from .settling import with_precision, with_stacking

MEASURED_STEPS = 2
_LONG_STEP = 2.0  # seconds; if the first step takes longer, it is the measurement: what it spends on allocating is little


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `steps` steps of a stage cost. seconds: wall time. disk_bytes: the most that its files take at once."""

    stage: Stage
    steps: int
    threads: int
    seconds_per_step: float
    seconds: float
    disk_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.stage} stage: about {duration(self.seconds)} on {self.threads} CPU thread(s) "
            f"({self.steps:,} steps of {self.seconds_per_step:.3g} s), up to {self.disk_bytes / 1e6:,.1f} MB of disk"
        )


def estimate(
    stage: str | int,
    config: TrainConfig,
    model_config: ModelConfig,
    *,
    device: str | torch.device = "cpu",
    steps_done: int = 0,
    prompts: int | None = None,
) -> Estimate:
    """The cost of a stage, from a few measured steps. Stage 2 counts the steps of all its chunks.

    steps_done: steps that need not be done any more. prompts: of all tasks together, since windows that share a prompt may
        share its computation; None: every window has its own.

    Raises:
        UnknownTaskError: no such stage.
        ConfigError: stage 2 or 3 of a model without experts, or a device that torch cannot use here.
    """
    stage, device = stage_name(stage), torch_device(device)
    require_instance("config", config, STAGE_CONFIGS[stage])
    require_instance("model_config", model_config, ModelConfig)
    config = with_precision(with_stacking(config, model_config, device), model_config, device)
    threads = config.threads or torch.get_num_threads()
    per_run, runs = _experts_per_run(config, model_config)
    with cpu_threads(threads):
        sampler = _random_sampler(stage, config, model_config, prompts)
        seconds = _seconds_per_step(stage, config, model_config, per_run, sampler, device)
    steps = max(config.steps * runs - steps_done, 0)
    return Estimate(stage, steps, threads, seconds, seconds * steps, disk_bytes(stage, config, model_config))


def disk_bytes(stage: Stage, config: TrainConfig, model_config: ModelConfig) -> int:
    """The most bytes that checkpoints and new bank files of a stage take at once."""
    with torch.device("meta"):
        model = _model(stage, model_config, _experts_per_run(config, model_config)[0])
    parameters = sum(p.numel() for p in _trained(stage, model).values())
    width = 8 if config.precision == "float64" else 4
    return 3 * width * parameters * (KEPT + 1) + 2 * 4 * parameters


def require_disk(stage: Stage, config: TrainConfig, model_config: ModelConfig, bank: Path) -> None:
    """Checks that there is room for a stage's files where the bank is. What its own earlier checkpoints take counts as free.

    Raises:
        DiskSpaceError: there is not; the message says how much is needed and how much is free.
    """
    used = sum(file.stat().st_size for file in (bank / "resume").glob(f"{stage}*-*/*"))
    needed, free = disk_bytes(stage, config, model_config) - used, shutil.disk_usage(bank).free
    if free < needed:
        raise DiskSpaceError(
            f"the {stage} stage needs {needed / 1e6:,.1f} MB for its checkpoints in {bank}; {free / 1e6:,.1f} MB are free there"
        )


@dataclass(frozen=True, slots=True)
class _RandomSampler:
    """The same random batch for every step, since the time of a step does not depend on the values."""

    batch: Batch

    def sample(self, step: int) -> Batch:
        return self.batch


def _experts_per_run(config: TrainConfig, model_config: ModelConfig) -> tuple[int, int]:
    """Experts stacked in one run, and the number of runs; (1, 1) outside stage 2."""
    if not isinstance(config, ExpertsConfig):
        return 1, 1
    E = max(model_config.n_experts, 1)
    per_run = min(config.experts_at_once or E, E)
    return per_run, -(-E // per_run)


def _model(stage: Stage, config: ModelConfig, per_run: int) -> M3DT:
    if stage == "router":
        return M3DT(config)
    return M3DT(dataclasses.replace(config, n_experts=per_run if stage == "experts" else 0, top_k=None))


def _trained(stage: Stage, model: M3DT) -> dict[str, torch.nn.Parameter]:
    parts = {"backbone": model.backbone_tensors, "experts": model.expert_tensors, "router": model.router_tensors}
    return parts[stage]()


def _seconds_per_step(
    stage: Stage,
    config: TrainConfig,
    model_config: ModelConfig,
    per_run: int,
    sampler: _RandomSampler,
    device: str | torch.device,
) -> float:
    with torch.random.fork_rng(devices=[]):
        model = _model(stage, model_config, per_run)
    slots = tuple(range(per_run)) if stage == "experts" else ()
    run = Run(
        name="estimate",
        config=config,
        model=model,
        parameters=_trained(stage, model),
        samplers=[sampler] * per_run,
        choice=slots or ("mixture" if stage == "router" else "none"),
        built_on={},
        public_files=dict,
        experts=slots,
    )
    trainer = Trainer(run, device)
    trainer.step()
    trainer.report()  # waits for the device
    if trainer.seconds > _LONG_STEP:
        return trainer.seconds
    started = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        trainer.step()
    trainer.report()
    return (time.perf_counter() - started) / MEASURED_STEPS


def _random_sampler(stage: Stage, config: TrainConfig, model_config: ModelConfig, prompts: int | None) -> _RandomSampler:
    B = config.batch_size
    with torch.random.fork_rng(devices=[]):
        window, prompt = (_random_window(model_config, B, T) for T in (model_config.context_length, model_config.prompt_length))
    action_mask = torch.ones(B, model_config.context_length, model_config.act_dim, dtype=torch.bool)
    ids = None
    if prompts is not None:  # an expert sees those of its own tasks
        ids = torch.arange(B) % max(1, math.ceil(prompts / model_config.n_experts) if stage == "experts" else prompts)
    return _RandomSampler(Batch(torch.zeros(B, dtype=torch.int64), window, prompt, action_mask, prompt_ids=ids))


def _random_window(config: ModelConfig, B: int, T: int) -> Window:
    timesteps = torch.randint(config.max_timesteps, (B, T))
    mask = torch.ones(B, T, dtype=torch.bool)
    return Window(torch.randn(B, T, config.state_dim), torch.rand(B, T, config.act_dim), torch.rand(B, T, 1), timesteps, mask)
