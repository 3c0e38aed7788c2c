"""The experiments, each a set of arms on task sets: their table (planned.py) from the paper's (paper.py) and ours (ours.py).

arms.py describes one, scales.py says how large it runs, task_sets.py on which tasks, budgets.py for how many steps.
"""

from .arms import Arm, Experiment
from .planned import EXPERIMENTS, cells, describe
from .scales import SCALES

__all__ = ["EXPERIMENTS", "SCALES", "Arm", "Experiment", "cells", "describe"]
