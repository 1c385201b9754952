# Two commands: `make demo` and `make test`. Both set everything up in .venv first.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
WORKERS ?= 2

.PHONY: setup demo test test-all lint bench clean

setup: $(VENV)/.ready

# torch first and pinned, so that no other package chooses it. On Linux, PyPI's build brings several GB of CUDA libraries:
# PIP_EXTRA_INDEX_URL with PyTorch's index of builds for CPUs avoids them.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; torch and the rest are fetched, which may take several minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("offramp needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" numpy
	@$(BIN)/python -m pip install --quiet -e '.[demo,dev,export,openvino,ray,serve,tensorboard,transformers,vision]'
	@touch $@

demo: setup
	@$(BIN)/offramp train --recipe digits --out runs/demo --resume
	@test -f runs/demo/policy.json || $(BIN)/offramp calibrate runs/demo --macs 0.7
	@$(BIN)/offramp evaluate runs/demo

# Bytecode is kept, whatever the environment says: every worker and child imports the package and the tests.
test test-all: export PYTHONDONTWRITEBYTECODE =

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not full"

test-all: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup
	@$(BIN)/python benchmarks/losses.py
	@$(BIN)/python benchmarks/search.py
	@$(BIN)/python benchmarks/train_speed.py
	@$(BIN)/python benchmarks/methods.py
	@$(BIN)/python benchmarks/hdkd.py
	@$(BIN)/python benchmarks/split.py

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
