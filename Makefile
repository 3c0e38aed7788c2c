# `make quickstart` and `make test` work on a fresh machine: both make .venv and install under constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install uv quickstart test test-slow lint types docs bench pretrained perf clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(VENV)/.installed

# Writes the pins of constraints.txt into pyproject.toml, where uv reads them.
uv:
	$(PYTHON) tests/uv_constraints.py

quickstart: install
	$(BIN)/m3dt quickstart --out runs/quickstart

# Two processes, each with files of its own: most tests keep one core busy.
test: install
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile

test-slow: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,behavior,notebook,wandb,trackio]'
	$(BIN)/python -m pytest -m slow

lint: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy reads an installed copy, because m3dt_agent.hub lives in hub/ in the checkout.
types: install
	rm -rf build/lib build/typed && $(BIN)/pip install --quiet --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy
	MYPYPATH=build/typed $(BIN)/mypy --package benchmarks

# The docs site, in build/docs. A warning is an error: a link that leads nowhere, a public name without an entry.
docs: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	rm -rf build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# Every method of the paper and its ablations, small, on ten real tasks: a quarter of an hour on two cores. Killed, it continues.
bench: install
	$(BIN)/python -m benchmarks run methods --scale smoke --out runs/bench
	$(BIN)/python -m benchmarks report runs/bench --out runs/bench-report

# builtin:mt160, from nothing: demonstrations of 160 tasks, three stages, all actors, the card. Hours on two cores, on a GPU if
# there is one. Killed, it continues.
pretrained: install
	nice -n 10 $(BIN)/python -m benchmarks run bank --scale wheel --device auto --out runs/pretrained
	$(BIN)/python -m benchmarks report runs/pretrained --out runs/pretrained-report
	$(BIN)/python -m benchmarks ship runs/pretrained --version 3 --results runs/pretrained-results

perf: install
	$(BIN)/python -m benchmarks.perf

clean:
	rm -rf $(VENV) build dist runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
