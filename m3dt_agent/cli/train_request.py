"""What `m3dt train` is asked for: its options for training settings, and what is trained, on what data, and where.

    options' values ─► TrainRequest     stages, their configs, and where they run; nothing is opened yet
    bank, datasets  ─► Plan             the model, the tasks, the data, and the stages that are left

Options of training settings are made from the fields of the stages' configs, so that each setting is declared once.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from ..config import STAGE_CONFIGS, STAGES, DataConfig, ModelConfig, Stage, TrainConfig, stage_name, train_preset
from ..errors import ConfigError, StageError
from ..jobs import LocalProcesses, RayCluster
from ..tasks import TaskSpec
from .options import choose_tasks, parse_pairs, parse_shard, parse_workers
from .output import say

if TYPE_CHECKING:
    from ..agent import M3DTAgent
    from ..bank import ExpertBank
    from ..data.task_datasets import TaskDatasets
    from ..training import Fanout
    from ..training.distributed import World


@dataclass(frozen=True, slots=True)
class SettingOption:
    """An option that sets one field of the stages' configs.

    type: of its value on the command line; a bool is a flag, of any other type None means that the option is not given.
    """

    name: str
    help: str
    type: Any


def setting_options() -> tuple[SettingOption, ...]:
    """The options of training settings: those that all stages have, then those of each stage."""
    found: dict[str, SettingOption] = {}
    shared = {field.name for field in dataclasses.fields(TrainConfig)}
    for number, config in enumerate(STAGE_CONFIGS.values(), 1):
        types_of = get_type_hints(config)
        for field in dataclasses.fields(config):
            if field.metadata["option"] and field.name not in found:
                text: str = field.metadata["help"]
                if field.name not in shared:
                    text = f"Stage {number}: {text[0].lower()}{text[1:]}"
                found[field.name] = SettingOption(field.name, text, _typed(types_of[field.name]))
    return tuple(found.values())


def _typed(field_type: Any) -> Any:
    """The type in which a field's value is typed on the command line: without None, and a text for a mapping."""
    if get_origin(field_type) is Mapping:
        return str
    if isinstance(field_type, types.UnionType):
        (field_type,) = (part for part in get_args(field_type) if part is not types.NoneType)
    return field_type


def stages_asked(stage: str, only_with_experts: Mapping[str, str | None]) -> tuple[Stage, ...]:
    """The stages that --stage means. only_with_experts: options that go with stage 2 alone, and their values.

    Raises:
        UnknownTaskError: no such stage. ConfigError: such an option was given for another stage.
    """
    stages = STAGES if stage == "all" else (stage_name(stage),)
    for option, value in only_with_experts.items():
        if value is not None and stages != ("experts",):
            raise ConfigError(f"{option} goes with --stage experts; got --stage {stage}")
    return stages


def stage_configs(preset: str | None, stages: Sequence[Stage], settings: Mapping[str, Any]) -> dict[Stage, TrainConfig | None]:
    """The config of each stage: the preset, with the settings that were given. None leaves the config to the bank.

    Args:
        settings: values of the options of `setting_options`, by name; a stage takes those that it has.

    Raises:
        UnknownTaskError: no such preset. ConfigError: a setting that does not validate.
    """
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    if "domain_weights" in given:
        given["domain_weights"] = parse_pairs(given["domain_weights"], int, "a weighting of domains", "dmcontrol:3,metaworld:2")
    configs: dict[Stage, TrainConfig | None] = {}
    for stage in stages:
        own = {field.name for field in dataclasses.fields(STAGE_CONFIGS[stage])}
        changes = {name: value for name, value in given.items() if name in own}
        configs[stage] = train_preset(preset or "small", stage, **changes) if preset or changes else None
    return configs


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
        from ..training import Fanout

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
            from ..data.task_datasets import TaskDatasets

            return TaskDatasets.open(self.root, tasks, self.source, config=config, cache=self.cache)
        from ..hub.datasets import open_pulled

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
    that were begun may be continued.
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

    def plan(self, world: World) -> Plan:
        """Opens the bank, if there is one, and the datasets, and leaves out what is done.

        Raises:
            StageError: a stage was begun and may not be continued. ConfigError: several workers for stage 2, or no tasks.
            BankError, DatasetError, HubError: of the bank and the datasets.
        """
        from ..bank import ExpertBank, is_bank
        from ..training.distributed import require_one_worker

        bank = ExpertBank.open(self.bank, check="sizes") if is_bank(self.bank) else None
        tasks = self.tasks.of(bank)
        if bank is None:
            changes = {} if self.new_experts is None else {"n_experts": self.new_experts}
            model = ModelConfig.preset(self.preset or "small", **changes).for_tasks(tasks)
            data_config = DataConfig.preset("paper" if self.preset == "paper" else "default")
        else:
            model, data_config = bank.config, bank.data_config
        stages = tuple(stage for stage in self.stages if self._has_work(bank, stage, tell=world.is_main))
        if "experts" in stages:
            require_one_worker(world)
        return Plan(model, tasks, self.datasets.open(tasks, data_config), stages)

    def train_stage(self, stage: Stage, agent: M3DTAgent, data: TaskDatasets) -> None:
        """One stage, here or on the cluster.

        Raises:
            M3DTError: as `M3DTAgent.fit_stage` and `fit_on_ray`.
        """
        config, spread = self.configs[stage], self.spread
        if stage == "experts":
            agent.fit_stage(stage, data, bank=self.bank, config=config, experts=self.only_experts, fanout=spread.fanout)
        elif spread.cluster is None:
            agent.fit_stage(stage, data, bank=self.bank, config=config)
        else:
            from ..training.ray_train import fit_on_ray

            fit_on_ray(
                stage, data, self.bank, config, cluster=spread.cluster, workers=spread.parallel, model_config=agent.config
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
