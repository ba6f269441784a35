# `make demo` and `make test` create .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while waiting are many times slower when other processes use the cores.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: demo test test-slow smoke fuzz faults gpu lint clean

define new-venv
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"headwatch needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Choose another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
endef

# The demo needs no test tools: an existing installation, such as README's, is used as it is.
$(BIN)/headwatch:
	$(new-venv)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,wandb]'

.venv/.installed: pyproject.toml constraints.txt
	$(new-venv)
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: $(BIN)/headwatch  ## train a small model by SFT and by GRPO with the callback, and write the report
	$(BIN)/headwatch demo

test: .venv/.installed lint  ## lint, type check and the tests, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/.installed  ## the tests that take minutes each
	$(BIN)/pytest -m slow

smoke: .venv/.installed  ## --dry-run and --smoke of every recipe, with one and two processes, and resumed recipes
	$(BIN)/pytest tests/training/test_recipes.py tests/training/test_resumed_recipes.py tests/training/test_processes.py -m "slow or not slow"

fuzz: .venv/.installed  ## 5,000 damaged inputs of every format that is read
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/fuzz.py

faults: .venv/.installed  ## 240 trainings with one injected fault each
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/faults.py

gpu: .venv/.installed  ## exactness and times on a CUDA machine, into gpu-results/
	$(BIN)/python benchmarks/gpu.py --out gpu-results

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv
