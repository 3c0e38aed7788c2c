"""Studies outside the experiments' frame; each is a program: `python -m benchmarks.studies.routing`."""
