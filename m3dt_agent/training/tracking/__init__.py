"""How trackers are told of training and evaluations.

tracker.py    the protocol, and the guard that keeps a tracker's faults from training
trackers.py   TensorBoard, Weights & Biases, Trackio
runs.py       what a run of a stage, or an evaluation, tells them
"""

from .tracker import Guarded, TrackedRun, Tracker

__all__ = ["Guarded", "TrackedRun", "Tracker"]
