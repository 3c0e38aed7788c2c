"""Runs of experiments, and what is published of them.

runner.py               trains and evaluates every cell of a run
data.py                 the demonstrations that cells train on
gradient_conflict.py    how much the gradients of a trained model's tasks disagree
publish.py              the bank of a run, into the package
"""
