"""Runs in TOML files: `m3dt train --config run.toml`, and the file of the run that a command means.

    tasks = ["reach", "walker-run"]        the tasks, and a key for each option: --only-experts is only_experts
    preset = "small"
    learning_rate = 3e-4                   a setting of all stages

    [stages.router]                        settings of one stage: every field of its config, also those without an option
    steps = 500

What is typed comes first, then `[stages.…]`, then the keys at the top, then the preset. Keys are looked up among the command's
parameters and the configs' fields, so a new option or setting is a key too.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from typer.core import TyperCommand

from ... import __version__
from ...config import STAGE_CONFIGS, STAGES, Stage, TrainConfig, from_dict
from ...errors import ConfigError
from ...system.disk import own_path, path_errors, user_path, write_file
from ...system.documents import shape_problem
from ...system.toml import read_toml, toml_lines
from ...tasks import lookup
from ..shared.options import expanded

if TYPE_CHECKING:
    from ...bank import ExpertBank

Tables = Mapping[Stage, Mapping[str, Any]]
_TASKS = ("names", "all_tasks", "task_set")
"""Parameters that choose tasks; if one is typed, the file's choice does not count."""
_NO_KEYS = ("config", "print_config", "help")


@dataclass(frozen=True, slots=True)
class RunFile:
    """What a file says. options: values by the parameter's name. stages: the settings of each `[stages.…]`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    stages: Tables = field(default_factory=dict)


class CommandWithFile(TyperCommand):
    """A command with --config, whose file's options come before those that are typed; `ctx.obj` is the rest of the file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the file that the arguments name, if they name one.

        Raises:
            ConfigError: it is not TOML, or says something that the command does not take. PathError: it cannot be read.
            UnknownTaskError: a key that there is not.
        """
        ctx.obj = RunFile()
        parsed, _, _ = self.make_parser(ctx).parse_args(list(args))
        typed = {name for name, value in parsed.items() if isinstance(value, (str, bool, list, tuple)) and value}
        if "config" in typed and "help" not in typed and not ctx.resilient_parsing:
            file = read_run(expanded(Path(parsed["config"])), self)
            left_out = typed | (set(_TASKS) if typed & set(_TASKS) else set())
            options = {name: value for name, value in file.options.items() if name not in left_out}
            names = options.pop("names", [])
            args = [*self._arguments(options), *args, *(["--", *names] if names else [])]
            stages = {
                stage: {name: value for name, value in table.items() if name not in typed}
                for stage, table in file.stages.items()
            }
            ctx.obj = RunFile(options, stages)
        return super().parse_args(ctx, args)

    def _arguments(self, options: Mapping[str, Any]) -> Iterable[str]:
        """The options as they are typed."""
        for parameter in self.params:
            value = options.get(parameter.name or "")
            if isinstance(value, bool):
                yield from (parameter.opts if value else parameter.secondary_opts)[:1]
            elif value is not None:
                yield f"{parameter.opts[0]}={value}"


def read_run(path: Path, command: TyperCommand) -> RunFile:
    """Reads a file of a run and checks it against the command's parameters and the stages' configs.

    Raises:
        As `CommandWithFile.parse_args`.
    """
    path = user_path(path)
    content = read_toml(path, ConfigError)
    parameters = inspect.signature(command.callback or read_run, eval_str=True).parameters
    shapes = {name: one.annotation for name, one in parameters.items()}
    keys = _keys(command)
    options = {}
    for key, value in content.items():
        if key != "stages":
            options[lookup(keys, key, f"key of {path}:")] = value
            if problem := shape_problem(value, _shape(shapes[keys[key]]), key):
                raise ConfigError(f"{path}: {problem}")
    for name in options.get("names", []):
        if options["names"].count(name) > 1:
            raise ConfigError(f"{path}: tasks names {name!r} twice; name each once")
    return RunFile(options, _stages(content.get("stages", {}), path))


def _stages(tables: Any, path: Path) -> Tables:
    if problem := shape_problem(tables, dict[str, dict[str, Any]], "stages"):
        raise ConfigError(f"{path}: {problem}; settings of a stage are a table, like [stages.router]")
    known: dict[str, Stage] = {stage: stage for stage in STAGES}
    for stage, table in tables.items():
        config = STAGE_CONFIGS[lookup(known, stage, f"stage in {path}:")]
        fields = {one.name: one for one in dataclasses.fields(config)}
        for key in table:
            lookup(fields, key, f"key of {path}, [stages.{stage}]:")
    return {stage: tables[stage] for stage in STAGES if stage in tables}


def _keys(command: TyperCommand) -> dict[str, str]:
    """Key → the name of its parameter."""
    return {
        "tasks" if one.param_type_name == "argument" else one.opts[0].removeprefix("--").replace("-", "_"): str(one.name)
        for one in command.params
        if one.name not in _NO_KEYS
    }


def _shape(annotation: Any) -> Any:
    """The type of a key's value: without typer's part and without None; a path is a text."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not types.NoneType)
    return str if annotation is Path else annotation


# -- written -------------------------------------------------------------------------------------------------------------------


def run_text(ctx: Any, configs: Mapping[Stage, TrainConfig], **changes: Any) -> str:
    """The text of a file that means the run of this command with these settings. changes: of parameters, by name."""
    values = {**ctx.params, **changes}
    settings = {one.name for config in STAGE_CONFIGS.values() for one in dataclasses.fields(config)}
    options = {key: _plain(values[name]) for key, name in _keys(ctx.command).items() if name in values and name not in settings}
    text = f"# m3dt {__version__}\n" + toml_lines({key: value for key, value in options.items() if value not in (None, [])})
    for stage, config in configs.items():
        fields = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
        text += f"\n[stages.{stage}]\n{toml_lines(fields)}"
    return text


def keep_run(ctx: Any, bank: ExpertBank) -> None:
    """Writes `logs/train.toml` of a bank: the file that makes it anew, with every stage as it was trained so far.

    Raises:
        DiskSpaceError, PathError: it cannot be written.
    """
    records = {stage: bank.manifest.stages[stage] for stage in STAGES if stage in bank.manifest.stages}
    configs = {
        stage: from_dict(STAGE_CONFIGS[stage], {**record["config"], "threads": record["threads"]})
        for stage, record in records.items()
    }
    tasks = {"names": list(bank.manifest.tasks), "all_tasks": False, "task_set": None}
    parts = {"stage": "all", "only_experts": None, "shard": None, "experts": bank.config.n_experts}
    path = own_path(bank.path, "logs/train.toml")
    with path_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, run_text(ctx, configs, **tasks, **parts))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return list(value)
    return str(value) if isinstance(value, Path) else value
