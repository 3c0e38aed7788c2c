"""Running experiments: data, training and evaluation of every cell (runner.py), and what is published of a run (publish.py)."""
