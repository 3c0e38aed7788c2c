"""Growing: a trained bank gets new tasks and experts for them, without the old tasks' data. Nothing that it had changes.

    bank ─► bank.grown: a copy with the new tasks ─► fit_growth: each new expert, on the new data, over the frozen backbone

An expert trains as in stage 2, alone, with weight 1. If its tasks are wider or longer than the bank's model, the columns and
rows that these lack are part of the expert and train with it (model/grown.py). Until it is trained, the bank does what it did.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bank import ExpertBank, is_bank
from ..bank.adding import untrained_experts
from ..bank.builtin import folder_to_write
from ..bank.growth import Growth, new_growth
from ..bank.manifest import expert_file
from ..bank.sizes import expert_config
from ..config import ExpertsConfig, ModelConfig
from ..config import from_dict as config_from_dict
from ..config.checks import require_instance
from ..data.batches import BatchSampler, derive_seed
from ..data.task_datasets import TaskDatasets
from ..errors import BankError, StageError
from ..model import M3DT
from ..model.determinism import cpu_threads, seeded
from ..model.grown import new_parts, widen_for_training
from .checkpoint import newest_checkpoint, remove_checkpoints, training_lock
from .distributed import joined, own_device, require_one_worker
from .experts import new_expert
from .logs import OnLog, announce
from .loop import train
from .planning.cost import estimate, require_disk
from .planning.resume import Settings, check_continuable, settle
from .run import Run
from .stage_inputs import data_fingerprint, hash_json
from .tracking import Guarded
from .tracking.runs import TrackedTraining
from .tracking.trackers import Trackers, make_trackers

GROWTH_SETTINGS: dict[str, Any] = {
    "steps": 1_000,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "warmup_steps": 100,
    "cooldown_steps": 333,
    "truncate_history": 0.5,
    "checkpoint_every": 250,
    "log_every": 50,
    "experts_at_once": 1,
}
"""Settings with which a new expert is trained unless others are given: minutes on a laptop, for one or a few tasks."""


def growth_config(**changes: Any) -> ExpertsConfig:
    """GROWTH_SETTINGS as a config; keyword arguments replace single fields. With few steps, warm-up and cool-down are shorter.

    Raises:
        ConfigError: an unknown field, or one that does not validate.
    """
    values = GROWTH_SETTINGS | changes
    if isinstance(values["steps"], int):
        for name, part in (("warmup_steps", 5), ("cooldown_steps", 3)):
            if name not in changes:
                values[name] = min(values[name], values["steps"] // part)
    return config_from_dict(ExpertsConfig, values)


def grow(
    bank: ExpertBank,
    path: str | Path,
    data: TaskDatasets,
    *,
    experts: int = 1,
    config: ExpertsConfig | None = None,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    on_log: OnLog | None = None,
    trackers: Trackers = (),
) -> ExpertBank:
    """Makes a copy of `bank` at `path` that acts on the tasks of `data` too. Called again after a kill, it continues.

    Args:
        data: of the new tasks alone, opened with the bank's DataConfig.
        experts: how many new experts; the tasks are split over them in their order.
        config, device, progress, on_log, trackers: as `fit_growth` takes them.

    Raises:
        BankError: there is something else at `path`.
        M3DTError: other errors of `ExpertBank.grown` and `fit_growth`.
    """
    require_instance("data", data, TaskDatasets)
    path = folder_to_write(path)
    if is_bank(path):
        grown = ExpertBank.open(path, check="sizes")  # `fit_growth` checks the contents
        _require_grown_from(bank, grown, data, experts)
    else:
        grown = bank.grown(path, data, experts=experts)
    fit_growth(data, grown, config, device=device, progress=progress, on_log=on_log, trackers=trackers)
    return grown


def fit_growth(
    data: TaskDatasets,
    bank: ExpertBank,
    config: ExpertsConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    on_log: OnLog | None = None,
    trackers: Trackers = (),
) -> None:
    """Trains the experts by which `bank` has grown last, from wherever each is.

    Args:
        data: the datasets of the tasks by which the bank has grown last, opened with its DataConfig.
        config: None: the one it was started with, else `growth_config()`. Fields about grouping have no effect.
        device, progress, on_log, trackers: as for `fit_stage`.

    Raises:
        StageError: the bank has not grown, or an expert is finished and should get more steps.
        ConfigError: settings that differ from those it was started with; several workers; a device that torch cannot use here.
        BankError: the data are not those of the growth, a file is damaged, or another process trains the bank.
        DiskSpaceError: no room. InvalidValueError: the loss became NaN or infinite; earlier checkpoints are kept.
    """
    require_instance("data", data, TaskDatasets)
    require_instance("bank", bank, ExpertBank)
    bank.require_writable()
    with joined(device) as world, contextlib.ExitStack() as stack:
        require_one_worker(world)
        device = own_device(device)
        stack.enter_context(training_lock(bank.path))
        bank.refresh()
        growth = _last_growth(bank, data)
        settled, threads = _settled(bank, growth, data, config, device)
        left = untrained_experts(bank.manifest)
        for expert in set(growth.experts) - set(left):
            remove_checkpoints(bank.path, _run_name(expert))
        if not left:
            announce(f"bank {bank.path} has grown by {', '.join(growth.tasks)} already; nothing to do", progress)
            return
        stack.enter_context(cpu_threads(threads))
        following = make_trackers(trackers, progress)
        for expert in left:
            _fit_expert(_NewExpert(bank, growth, expert, data, settled), device, threads, progress, on_log, following)


def growth_runs(data: TaskDatasets, bank: ExpertBank, config: ExpertsConfig) -> Iterator[Run]:
    """The runs that `fit_growth` trains: one for each new expert that is not trained yet.

    Raises:
        StageError: the bank has not grown. BankError: the data are not those of the growth.
    """
    growth = _last_growth(bank, data)
    for expert in untrained_experts(bank.manifest):
        yield _NewExpert(bank, growth, expert, data, config).run()


def _fit_expert(
    new: _NewExpert,
    device: torch.device,
    threads: int,
    progress: bool | None,
    on_log: OnLog | None,
    trackers: tuple[Guarded, ...],
) -> None:
    bank, config = new.bank, new.config
    require_disk("experts", config, new.model_config, bank.path)
    if progress is not False:
        own = dataclasses.replace(config, threads=threads)
        prompts = new.data.config.n_prompts * len(new.tasks)
        cost = estimate("experts", own, new.model_config, device=device, prompts=prompts)
        announce(f"growing by {', '.join(new.tasks)}: {cost}", progress)
    run = new.run()
    _require_continuable(run, bank)
    with TrackedTraining(trackers, bank, run, on_log) as told:
        train(run, bank.path, device=device, threads=threads, progress=progress, on_log=told)
        bank.commit(run.public_files())
    remove_checkpoints(bank.path, run.name)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _NewExpert:
    """An expert that is to be trained, and what it is trained on."""

    bank: ExpertBank
    growth: Growth
    expert: int
    data: TaskDatasets
    config: ExpertsConfig

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.growth.members(self.expert)

    @property
    def model_config(self) -> ModelConfig:
        return expert_config(self.bank.manifest, self.expert)

    def run(self) -> Run:
        """The run that trains it."""
        bank, wide = self.bank, self.model_config
        model = M3DT(dataclasses.replace(bank.config, n_experts=1, top_k=None))
        bank.load_backbone(model)
        model.load_expert(0, new_expert(bank.config, self.config.seed, self.expert))
        with seeded(derive_seed(self.config.seed, "experts", self.expert, 0, "wider"), torch.device("cpu")):
            wider = widen_for_training(model, wide, new_parts(model, wide))
        parameters = {**model.expert_tensors(), **wider}
        return Run(
            name=_run_name(self.expert),
            config=self.config,
            model=model,
            parameters=parameters,
            samplers=[self._sampler(wide)],
            choice=(0,),
            built_on=self._built_on(wide),
            public_files=lambda: {expert_file(self.expert): _one(parameters)},
            experts=(self.expert,),
        )

    def _sampler(self, wide: ModelConfig) -> BatchSampler:
        config = self.config
        return BatchSampler(
            self.data.subset(self.tasks),
            self.bank.statistics,
            self.bank.prompts,
            wide,
            batch_size=config.batch_size,
            tasks_per_batch=config.tasks_per_batch,
            seed=config.seed,
            stage=config.stage,
            expert=self.expert,
            domain_weights=config.domain_weights,
            truncate_history=config.truncate_history,
            labels=config.labels,
        )

    def _built_on(self, wide: ModelConfig) -> dict[str, str]:
        files = self.bank.manifest.files
        names = ("backbone.safetensors", self.growth.statistics_file, self.growth.prompts_file)
        hashes = {"model config": hash_json(wide.to_dict()), "groups": hash_json(dict(self.growth.groups))}
        return {**hashes, "data": data_fingerprint(self.data), **{name: files[name].sha256 for name in names}}


def _one(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """The tensors of the one expert, as a bank's `commit` takes them."""
    return {name: parameter.detach()[0].to("cpu", torch.float32).contiguous() for name, parameter in parameters.items()}


def _last_growth(bank: ExpertBank, data: TaskDatasets) -> Growth:
    """The growth that is to be trained, if `data` are its data."""
    if not bank.growths:
        raise StageError(f"bank {bank.path} has not grown; bank.grown(path, data) makes a copy that has")
    growth, found = bank.growths[-1], tuple(task.name for task in data.tasks)
    if found != growth.tasks:
        raise BankError(
            f"bank {bank.path} has grown by {', '.join(growth.tasks)}; the data are of {', '.join(found)} (the order counts)"
        )
    if differ := [task.name for task in data.tasks if task != bank.manifest.task(task.name)]:
        raise BankError(f"bank {bank.path} holds another task of the name {differ[0]!r} than the data: their specs differ")
    if data.config != bank.data_config:
        raise BankError(f"bank {bank.path} was made with {bank.data_config}; the data were opened with {data.config}")
    return growth


def _settled(
    bank: ExpertBank, growth: Growth, data: TaskDatasets, config: ExpertsConfig | None, device: torch.device
) -> tuple[ExpertsConfig, int]:
    """The config and the number of threads; both are recorded in the bank before the first step."""
    fingerprint, before = data_fingerprint(data), growth.training
    recorded = Settings(before["config"], before["threads"], before["data"], None, {}) if before else None
    if recorded is not None and recorded.data != fingerprint:
        raise BankError(
            f"bank {bank.path} has grown on data {recorded.data[:12]}; the data given are {fingerprint[:12]}: grow another"
        )
    asked = growth_config() if config is None and recorded is None else config
    settled, threads = settle(asked, recorded, bank, "experts", device)
    assert isinstance(settled, ExpertsConfig)
    finished = set(growth.experts) - set(untrained_experts(bank.manifest))
    if recorded is not None and settled.steps > recorded.config["steps"] and finished:
        raise StageError(
            f"experts {sorted(finished)} of bank {bank.path} ended after {recorded.config['steps']:,} steps; to train them for "
            f"{settled.steps:,}, let the bank grow anew"
        )
    training = {"config": settled.to_dict(), "threads": threads, "data": fingerprint}
    if training != before and untrained_experts(bank.manifest):
        bank.commit({}, grown=(*bank.growths[:-1], dataclasses.replace(growth, training=training)))
    return settled, threads


def _require_continuable(run: Run, bank: ExpertBank) -> None:
    """Checks that the run's checkpoint, if there is one, was started on what the run builds on."""
    checkpoint, _ = newest_checkpoint(bank.path, run.name)
    if checkpoint is not None:
        state = checkpoint.state
        started = Settings(state.config, state.threads, state.built_on.get("data", ""), run.name, state.built_on)
        check_continuable(started, run.name, run.built_on, bank)


def _require_grown_from(bank: ExpertBank, grown: ExpertBank, data: TaskDatasets, experts: int) -> None:
    """Checks that the bank at the target is what `bank` becomes when it grows by `data`."""
    names = [task.name for task in data.tasks]
    wanted = (*bank.growths, new_growth(bank.growths, names, experts, bank.config.n_experts))
    before = grown.manifest.with_growths(grown.growths[:-1])
    same = [growth.groups for growth in grown.growths] == [growth.groups for growth in wanted]
    if not same or before != bank.manifest:
        found = f"grown by {', '.join(grown.growths[-1].tasks)}" if grown.growths else "not grown"
        raise BankError(
            f"there is another bank at {grown.path} ({found}) than the one that bank {bank.path} becomes with {experts} "
            f"expert(s) for {', '.join(names)}; choose another folder"
        )


def _run_name(expert: int) -> str:
    return f"grown-{expert:03d}"
