"""What `m3dt train` is asked for: what is trained, on what data, and where.

options' values ─► TrainRequest     stages, their configs, and where they run; nothing is opened yet
bank, datasets  ─► Plan             the model, the tasks, the data, and the stages that are left
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...config import DataConfig, ModelConfig, Stage, TrainConfig, train_preset
from ...errors import ConfigError, StageError
from ...jobs import LocalProcesses, RayCluster
from ...tasks import TaskSpec
from ..shared.options import choose_tasks, parse_shard, parse_workers
from ..shared.output import say

if TYPE_CHECKING:
    from ...agent import M3DTAgent
    from ...bank import ExpertBank
    from ...data.task_datasets import TaskDatasets
    from ...training import Fanout
    from ...training.distributed import World
    from ...training.tracking import Guarded


@dataclass(frozen=True, slots=True)
class Spread:
    """Where stages run. fanout: of stage 2; None: this process. parallel: workers of stages 1 and 3 on the cluster, or the
    fewest and the most; without a cluster they run in this process, or in those of torchrun."""

    cluster: RayCluster | None
    fanout: Fanout | None
    parallel: int | tuple[int, int]

    @classmethod
    def over(
        cls,
        cluster: RayCluster | None,
        *,
        workers: int | None,
        experts_per_job: int | None,
        shard: str | None,
        retries: int,
        data_parallel: str | None,
    ) -> Spread:
        """What the options for jobs and workers mean.

        Raises:
            ConfigError: a value that cannot be read, or --data-parallel without a cluster.
        """
        from ...training import Fanout

        fanout = None
        if cluster is not None or (workers, experts_per_job, shard) != (None, None, None):
            fanout = Fanout(cluster or LocalProcesses(workers or 0, retries), experts_per_job, parse_shard(shard or "1/1"))
        if data_parallel is not None and cluster is None:
            raise ConfigError(f"--data-parallel {data_parallel} goes with --ray; without Ray, start workers with torchrun")
        return cls(cluster, fanout, parse_workers(data_parallel or "1"))


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """The tasks that were named, one way or another."""

    names: Sequence[str] | None
    all_tasks: bool
    task_set: str | None
    set_seed: int

    def of(self, bank: ExpertBank | None) -> tuple[TaskSpec, ...]:
        """The tasks, each once; the bank's if none were named.

        Raises:
            ConfigError: none were named and there is no bank. UnknownTaskError: a name that is no task, set or domain.
        """
        if bank is not None and not self.names and not self.all_tasks and self.task_set is None:
            return bank.tasks
        first = () if bank is None else bank.tasks
        return choose_tasks(self.names, all_tasks=self.all_tasks, task_set=self.task_set, seed=self.set_seed, first=first)


@dataclass(frozen=True, slots=True)
class DatasetChoice:
    """Where datasets are.

    pull: a repository on the Hub, name or name@revision, that they are fetched from first.
    cache: folder of their packed copies; None: the default.
    """

    root: Path
    source: str | None
    pull: str | None
    cache: Path | None = None

    def open(self, tasks: Sequence[TaskSpec], config: DataConfig) -> TaskDatasets:
        """The datasets of `tasks`.

        Raises:
            DatasetError: one is missing, damaged or ambiguous. HubError: it cannot be fetched.
        """
        if self.pull is None:
            from ...data.task_datasets import TaskDatasets

            return TaskDatasets.open(self.root, tasks, self.source, config=config, cache=self.cache)
        from ...hub.datasets import open_pulled

        repo, _, revision = self.pull.partition("@")
        names = [task.name for task in tasks]
        return open_pulled(repo, self.root, names, self.source, revision=revision or None, config=config, cache=self.cache)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left to train, and on what."""

    model: ModelConfig
    tasks: tuple[TaskSpec, ...]
    data: TaskDatasets
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What is to be trained.

    bank: its folder, which need not exist. by_name: whether the one stage of `stages` was asked for by its name or number.
    new_experts: experts per block of a new bank. only_experts: of stage 2; None: all that are missing. resume: whether stages
    that were begun may be continued. track: names of trackers, with commas between them.
    """

    bank: Path
    stages: tuple[Stage, ...]
    by_name: bool
    configs: Mapping[Stage, TrainConfig | None]
    preset: str | None
    new_experts: int | None
    only_experts: tuple[int, ...] | None
    tasks: TaskChoice
    datasets: DatasetChoice
    spread: Spread
    resume: bool
    track: str | None = None

    def plan(self, world: World) -> Plan:
        """Opens the bank, if there is one, and the datasets, and leaves out what is done.

        Raises:
            StageError: a stage was begun and may not be continued. ConfigError: several workers for stage 2, or no tasks.
            BankError, DatasetError, HubError: of the bank and the datasets.
        """
        from ...bank import ExpertBank, is_bank
        from ...training.distributed import require_one_worker
        from ...training.stage_inputs import require_ungrown

        bank = ExpertBank.open(self.bank, check="sizes") if is_bank(self.bank) else None
        tasks = self.tasks.of(bank)
        if bank is None:
            preset = ModelConfig.preset(self.preset or "small")
            experts = min(preset.n_experts, len(tasks)) if self.new_experts is None else self.new_experts
            model = replace(preset, n_experts=experts).for_tasks(tasks)
            data_config = DataConfig.preset("paper" if self.preset == "paper" else "default")
        else:
            require_ungrown(bank)
            model, data_config = bank.config, bank.data_config
        stages = tuple(stage for stage in self.stages if self._has_work(bank, stage, tell=world.is_main))
        if "experts" in stages:
            require_one_worker(world)
        return Plan(model, tasks, self.datasets.open(tasks, data_config), stages)

    def effective_preset(self) -> str | None:
        """The preset that is asked for; `small` for a new bank if none is."""
        from ...bank import is_bank

        return self.preset or (None if is_bank(self.bank) else "small")

    def effective_configs(self) -> dict[Stage, TrainConfig]:
        """The config of each stage: the one that is asked for, else the one that `fit_stage` takes from the bank.

        Raises:
            BankError: of the bank.
        """
        from ...bank import ExpertBank, is_bank

        asked = dict(self.configs)
        if not is_bank(self.bank):
            return {stage: config or train_preset("small", stage) for stage, config in asked.items()}
        from ...training.planning.resume import config_of_bank

        bank = ExpertBank.open(self.bank, check="sizes")
        return {stage: config or config_of_bank(bank, stage) for stage, config in asked.items()}

    def train_stage(self, stage: Stage, agent: M3DTAgent, data: TaskDatasets, trackers: tuple[Guarded, ...] = ()) -> None:
        """One stage, here or on the cluster.

        Raises:
            M3DTError: as `M3DTAgent.fit_stage` and `fit_on_ray`.
        """
        config, spread = self.configs[stage], self.spread
        if stage == "experts":
            agent.fit_stage(
                stage,
                data,
                bank=self.bank,
                config=config,
                experts=self.only_experts,
                fanout=spread.fanout,
                trackers=trackers,
            )
        elif spread.cluster is None:
            agent.fit_stage(stage, data, bank=self.bank, config=config, trackers=trackers)
        else:
            from ...training.ray_train import fit_on_ray

            fit_on_ray(
                stage,
                data,
                self.bank,
                config,
                cluster=spread.cluster,
                workers=spread.parallel,
                model_config=agent.config,
                trackers=trackers,
            )

    def _has_work(self, bank: ExpertBank | None, stage: Stage, *, tell: bool) -> bool:
        """Whether a stage is to be trained: it is not done, or it was asked for by name. tell: say so if it is kept."""
        status = "absent" if bank is None else bank.status(stage)
        if status != "absent" and not self.resume:
            raise StageError(f"stage {stage!r} of this bank is {status}, and --no-resume was given; choose another --bank")
        kept = status == "done" and not self.by_name
        if kept and tell:
            say(f"stage {stage}: done before, kept")
        return not kept
