"""`TaskSpec`: one task as data. Nothing in it runs code.

A spec of one's own names a Gymnasium environment. `envs.make_env` makes it and puts a wrapper around it, so that everything
else in this package sees flat float32 observations and actions in [-1, 1]:

    >>> from m3dt_agent.tasks import Linear, TaskSpec
    >>> swing = TaskSpec("swing", "classic", obs_dim=3, act_dim=1, max_episode_steps=200, return_scale=200.0,
    ...                  score=Linear(-1500.0, 0.0), env="Pendulum-v1", action_low=(-2.0,), action_high=(2.0,))
    >>> swing.normalized_score(-150.0)
    90.0
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..errors import ConfigError
from ..system.documents import checked_shape

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
LARGEST_WIDTH = 1_024
"""The widest observation or action of a task. Everything that a task decides the size of is allocated by it."""
LONGEST_EPISODE = 10_000
"""The longest episode of a task, in agent steps."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A score that is linear in the return: 0 at `low`, 100 at `high`. clip: whether returns beyond score 0 or 100.

    Raises:
        ConfigError: a bound is not finite, or low >= high.
    """

    low: float
    high: float
    clip: bool = True

    def __post_init__(self) -> None:
        if not (_is_finite(self.low) and _is_finite(self.high) and self.low < self.high and isinstance(self.clip, bool)):
            raise ConfigError(f"a linear score needs finite numbers low < high, and clip true or false; got {self}")

    def of(self, episode_return: float) -> float:
        """The score of an episode with this return."""
        point = (self.high - self.low) / 100.0  # of return
        above = episode_return - self.low
        # dividing by a whole number is exact to the last bit, as in return / 10; by 0.7 it would be rounded twice
        score = above / point if point.is_integer() else 100.0 * above / (self.high - self.low)
        return min(max(score, 0.0), 100.0) if self.clip else score


ScoreRule: TypeAlias = Linear | Literal["success", "return"]
"""How an episode is scored: 100 for success and 0 without, linear in its return, or by the return itself."""


def score_of(rule: ScoreRule, episode_return: float, success: bool | None, name: str) -> float:
    """The score of an episode of the task `name` by this rule.

    Raises:
        ConfigError: the rule is "success", and `success` is None.
    """
    if isinstance(rule, Linear):
        return rule.of(episode_return)
    if rule == "return":
        return episode_return
    if success is None:
        raise ConfigError(f"task {name!r} is scored by success; got success=None")
    return 100.0 if success else 0.0


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: the widths of its observations and actions, its length, and how its returns are scaled and scored.

    name, domain: letters, digits, "_" and "-", as in the ids of Minari's datasets; the domain is the group in which tables and
        plots show the task.
    return_scale: the model sees returns-to-go divided by this.
    has_success: episodes say in their info ("success" or "is_success") whether the task is solved; set where `score` needs it.
    env: Gymnasium id; "": `M3DT/<name>-v0`. env_kwargs: its arguments, values of JSON only.
    action_low, action_high: the environment's own bounds, one finite number per entry; None: -1 and 1.
    observation: for an environment whose observations are dictionaries, the entries in the order in which they are joined,
        "a/b" for an entry b of entry a; none for one with arrays.

    Of the 160 tasks besides: `published_name` and `published_num_trajectories` are the task's name and the number of its
    episodes in the authors' data. `target_return` and `return_scale` are constants of the authors' code. `published_score` is
    the score of a Prompt-DT trained on this task alone (appendix A.3). A `custom` task is one of DMControl that is not in
    dm_control's suite. `goal_direction` (ant-dir only) is in radians, `goal_velocity` (cheetah-vel only) in m/s.

    Raises:
        ConfigError: a value that cannot be; the message names it.
    """

    name: str
    domain: str
    obs_dim: int
    act_dim: int
    max_episode_steps: int
    return_scale: float
    score: ScoreRule
    has_success: bool = False
    env: str = ""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    observation: tuple[str, ...] = ()
    target_return: float | None = None
    published_name: str | None = None
    published_score: float | None = None
    published_num_trajectories: int | None = None
    custom: bool = False
    goal_direction: float | None = None
    goal_velocity: float | None = None

    def __post_init__(self) -> None:
        for what in ("name", "domain"):
            text = getattr(self, what)
            if not (isinstance(text, str) and _NAME.fullmatch(text)):
                raise self._wrong(what, 'at most 64 letters, digits, "_" and "-", the first a letter or digit', text)
        for what, largest in (
            ("obs_dim", LARGEST_WIDTH),
            ("act_dim", LARGEST_WIDTH),
            ("max_episode_steps", LONGEST_EPISODE),
        ):
            number = getattr(self, what)
            if type(number) is not int or not 1 <= number <= largest:
                raise self._wrong(what, f"an integer from 1 to {largest:,}", number)
        if not (_is_finite(self.return_scale) and self.return_scale > 0):
            raise self._wrong("return_scale", "a finite number above 0", self.return_scale)
        if not (isinstance(self.score, Linear) or self.score in ("success", "return")):
            raise self._wrong("score", '"success", "return" or Linear(low, high)', self.score)
        if self.score == "success":
            object.__setattr__(self, "has_success", True)
        self._check_env()

    def _check_env(self) -> None:
        if not isinstance(self.env, str) or ":" in self.env:
            raise self._wrong("env", 'the id of a registered environment; "module:id" would import the module', self.env)
        try:
            kwargs = json.loads(json.dumps(dict(self.env_kwargs), allow_nan=False))
        except (TypeError, ValueError):
            raise self._wrong("env_kwargs", "a table of numbers, strings, lists and tables", self.env_kwargs) from None
        object.__setattr__(self, "env_kwargs", kwargs)
        object.__setattr__(self, "observation", tuple(self.observation))
        if not all(isinstance(key, str) and key for key in self.observation):
            raise self._wrong("observation", "names of entries", self.observation)
        for what in ("action_low", "action_high"):
            bounds = getattr(self, what)
            if bounds is not None:
                if not isinstance(bounds, Sequence) or len(bounds) != self.act_dim or not all(map(_is_finite, bounds)):
                    raise self._wrong(what, f"{self.act_dim} finite numbers, one per entry of an action", bounds)
                object.__setattr__(self, what, tuple(float(bound) for bound in bounds))
        if any(low >= high for low, high in zip(*self.action_bounds, strict=True)):
            raise self._wrong("action_low", "below action_high in every entry", self.action_bounds)

    def _wrong(self, what: str, valid: str, got: object) -> ConfigError:
        return ConfigError(f"task {self.name!r}: {what} must be {valid}; got {got!r}")

    def __hash__(self) -> int:
        return hash((self.name, self.domain, self.obs_dim, self.act_dim, self.env))

    @property
    def env_id(self) -> str:
        """The Gymnasium id of its environment."""
        return self.env or f"M3DT/{self.name}-v0"

    @property
    def action_bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lowest and the highest action that the environment itself takes."""
        return (
            self.action_low if self.action_low is not None else (-1.0,) * self.act_dim,
            self.action_high if self.action_high is not None else (1.0,) * self.act_dim,
        )

    def normalized_score(self, episode_return: float, success: bool | None = None) -> float:
        """The score of one episode: from 0 to 100, but for a task that is scored by its return itself.

        Meta-World: 100 if `success` else 0. DMControl: return / 10. cheetah-vel: linear from [-100, -30] to [0, 100], clipped.
        ant-dir: return / 5, clipped. (M3DT, section 5 and appendix A.)

        Raises:
            ConfigError: the task is scored by success, and `success` is None.
        """
        return score_of(self.score, episode_return, success, self.name)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON holds it; what has its default is left out."""
        found = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            default = {} if one.name == "env_kwargs" else one.default
            if value != default:
                found[one.name] = dataclasses.asdict(value) if isinstance(value, Linear) else copy.deepcopy(value)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: object = "the task") -> TaskSpec:
        """The spec that `to_dict` made. name: what errors call where it is from.

        Raises:
            ConfigError: an unknown or missing key, or a value that cannot be.
        """
        spec: TaskSpec = checked_shape(dict(values), cls, ConfigError, name=name)
        return spec


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
