"""What is settled before a stage trains.

plan.py       what the stage does, and whether it can    resume.py     how a stage that was begun continues
settling.py   settings that depend on the machine        cost.py       how long it takes, and how much disk it needs
"""

from .cost import Estimate, estimate
from .plan import Plan, plan_stage

__all__ = ["Estimate", "Plan", "estimate", "plan_stage"]
