"""The quickstart: eight real tasks, from no data to a trained and evaluated agent. pipeline.py says what it does."""

from .pipeline import HELD_OUT_SEED, NOISE, POLICIES, TASKS, QuickstartConfig, parse_steps, run

__all__ = ["HELD_OUT_SEED", "NOISE", "POLICIES", "TASKS", "QuickstartConfig", "parse_steps", "run"]
