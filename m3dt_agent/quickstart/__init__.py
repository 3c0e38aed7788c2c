"""The quickstart: eight real tasks, from no data to a trained and evaluated agent.

pipeline.py   the run, part by part               settings.py   its tasks, budget and settings
parts.py      parts that are done only once       figure.py     the figure of what came out
"""

from .pipeline import run
from .settings import HELD_OUT_SEED, NOISE, POLICIES, TASKS, QuickstartConfig, parse_steps

__all__ = ["HELD_OUT_SEED", "NOISE", "POLICIES", "TASKS", "QuickstartConfig", "parse_steps", "run"]
