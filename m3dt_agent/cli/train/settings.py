"""The training settings of `m3dt train`: options made from the fields of the stages' configs, and configs made of their values.

Each setting is declared once, in config/training.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ...config import STAGE_CONFIGS, STAGES, Stage, TrainConfig, stage_name, train_preset
from ...errors import ConfigError
from ..shared.options import parse_pairs


@dataclass(frozen=True, slots=True)
class SettingOption:
    """An option that sets one field of the stages' configs.

    type: of its value on the command line; a bool is a flag, of any other type None means that the option is not given.
    """

    name: str
    help: str
    type: Any


def setting_options(*, of_stages: bool = True) -> tuple[SettingOption, ...]:
    """The options of training settings: those that all stages have and, with `of_stages`, then those of each stage."""
    found: dict[str, SettingOption] = {}
    shared = {field.name for field in dataclasses.fields(TrainConfig)}
    for number, config in enumerate(STAGE_CONFIGS.values(), 1):
        types_of = get_type_hints(config)
        for field in dataclasses.fields(config):
            if field.metadata["option"] and field.name not in found and (of_stages or field.name in shared):
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


def with_setting_options(options: Sequence[SettingOption], panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: `**settings` in its signature, which typer reads, becomes an option for each of these.

    panel: their heading in the command's help.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        for option in options:
            flag = option.type is bool
            names = [f"--{option.name.replace('_', '-')}"] if flag else []  # a flag without a --no-… beside it
            shown = typer.Option(*names, help=option.help, rich_help_panel=panel)
            parameters.append(
                inspect.Parameter(
                    option.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=False if flag else None,
                    annotation=Annotated[option.type if flag else option.type | None, shown],
                )
            )
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def given_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the options that were given, as the fields of a config take them.

    Raises:
        ConfigError: numbers of domains that are written in another way.
    """
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    for name in {"domain_weights", "domain_experts"} & given.keys():
        given[name] = parse_pairs(given[name], int, "numbers of domains", "dmcontrol:3,metaworld:2")
    return given


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


def stage_configs(
    preset: str | None, stages: Sequence[Stage], settings: Mapping[str, Any], tables: Mapping[Stage, Mapping[str, Any]] = {}
) -> dict[Stage, TrainConfig | None]:
    """The config of each stage: the preset, with the settings that were given. None leaves the config to the bank.

    Args:
        settings: values of the options of `setting_options`, by name; a stage takes those that it has.
        tables: settings of single stages, which come before those of all.

    Raises:
        UnknownTaskError: no such preset. ConfigError: a setting that does not validate.
    """
    given = given_settings(settings)
    configs: dict[Stage, TrainConfig | None] = {}
    for stage in stages:
        own = {field.name for field in dataclasses.fields(STAGE_CONFIGS[stage])}
        changes = {name: value for name, value in given.items() if name in own} | {**tables.get(stage, {})}
        configs[stage] = train_preset(preset or "small", stage, **changes) if preset or changes else None
    return configs
