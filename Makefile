# The two commands of the README are `make demo` and `make test`; both make .venv on first use and reuse it after.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while waiting make identical CPU work many times slower when the cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: demo test test-slow smoke lint clean

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"headwatch needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: .venv/.installed  ## train a small model by SFT and by GRPO with the callback, and write the report
	$(BIN)/headwatch demo

test: .venv/.installed lint  ## lint, types and the test suite, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

test-slow: .venv/.installed  ## the checks that take minutes each
	$(BIN)/pytest -m slow

smoke: .venv/.installed  ## --dry-run and --smoke of every recipe, one and two processes; and recipes killed and resumed
	$(BIN)/pytest tests/training/test_recipes.py tests/training/test_resumed_recipes.py -m "slow or not slow"

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv
