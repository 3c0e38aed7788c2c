"""Studies that do not fit the form of an experiment. Each is a program, such as `python -m benchmarks.studies.routing`."""
