"""Behavior policies, which act while demonstrations are collected.

catalog.py    the levels of each task, and their policies    policies.py      the policies themselves
training.py   trains one                                     learners.py      the algorithms that it trains with
planner.py    a policy that plans                            checkpoints.py   what a training leaves on disk
"""

from .catalog import (
    PLANNER_LEVEL,
    SNAPSHOT_LEVELS,
    BehaviorInfo,
    MeasuredReturn,
    behavior_policy,
    behavior_table,
    levels,
    measured_returns,
    parse_level,
)
from .policies import (
    BehaviorPolicy,
    CallablePolicy,
    MLPPolicy,
    NoisyPolicy,
    RandomPolicy,
    SB3Checkpoint,
    ScriptedPolicy,
    ZeroPolicy,
    from_callable,
    from_sb3,
    goal_features,
)

__all__ = [
    "PLANNER_LEVEL",
    "SNAPSHOT_LEVELS",
    "BehaviorInfo",
    "BehaviorPolicy",
    "CallablePolicy",
    "MLPPolicy",
    "MeasuredReturn",
    "NoisyPolicy",
    "RandomPolicy",
    "SB3Checkpoint",
    "ScriptedPolicy",
    "ZeroPolicy",
    "behavior_policy",
    "behavior_table",
    "from_callable",
    "from_sb3",
    "goal_features",
    "levels",
    "measured_returns",
    "parse_level",
]
