"""The experiments: which methods are trained on which tasks, and how large.

planned.py      all experiments by name, and the cells of each; from paper.py (the paper's) and ours.py (our own)
arms.py         what an experiment consists of
scales.py       the published settings, and what each scale makes of them
task_sets.py    the sets of tasks
budgets.py      equal parameters, windows and training FLOP
"""

from .arms import Arm, Experiment
from .planned import EXPERIMENTS, cells, describe
from .scales import SCALES

__all__ = ["EXPERIMENTS", "SCALES", "Arm", "Experiment", "cells", "describe"]
