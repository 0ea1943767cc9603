# Every target does its own set-up: a virtual environment in .venv with what the requirements files name.
PYTHON ?= python3
VENV := .venv
SWEEP := .venv-sweep
BIN := $(VENV)/bin/python
PIP := $(BIN) -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test quick gpu-check lint figures forks table sweep-setup sweep-test clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/page.stamp  ## train and test three methods on the embedded dataset, print the table, make a page of it
	@PYTHON=$(BIN) bash scripts/demo.sh

test quick: export OMP_NUM_THREADS := 1  # pytest-xdist has a process for each core

test: $(VENV)/test.stamp  ## run the test suite
	@$(BIN) -m pytest -n auto --dist loadfile --ignore tests/dassl/test_memory.py
	@$(BIN) -m pytest tests/dassl/test_memory.py  # counts every living tensor, so nothing else may run there

quick: $(VENV)/test.stamp  ## the tests without the slow ones
	@$(BIN) -m pytest -n auto --dist loadfile -m "not slow"

figures: $(VENV)/run.stamp  ## write the tables of README.md and docs/ from docs/results/
	@$(BIN) -m results.figures

forks: $(VENV)/test.stamp  ## swap_in.py on every clone in the folder FORKS, and docs/results/forks.json
	@$(BIN) -m tests.upstream.drive $(FORKS) --write

gpu-check: $(VENV)/test.stamp  ## what only a GPU can show, as a table to send back
	@$(BIN) -c 'from dassl.utils import collect_env_info; print(collect_env_info())'
	@$(BIN) -m pytest -m cuda -rs --no-header

lint: $(VENV)/test.stamp  ## check style and formatting
	@$(BIN) -m ruff check . && $(BIN) -m ruff format --check .

table: $(VENV)/run.stamp  ## results of all runs under output/
	@$(BIN) parse_test_res.py output

sweep-setup: $(SWEEP)/sweep.stamp  ## Snakemake for sweeps/, in an environment of its own

sweep-test: $(VENV)/test.stamp $(SWEEP)/sweep.stamp  ## test sweeps on this machine, and on Slurm where it is installed
	@SWEEP_TEST=1 $(BIN) -m pytest tests/sweeps -rs -n auto --dist loadfile

clean:  ## remove the virtual environment and caches, never results
	rm -rf $(VENV) $(SWEEP) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment with pip: Debian's Python has ensurepip in a package of its own.
define venv
	@$(PYTHON) -m venv --clear --without-pip $(1)
	@$(1)/bin/python -m ensurepip >/dev/null 2>&1 || $(PYTHON) -m pip --quiet --python $(1)/bin/python install pip || { \
	  echo "This Python has no pip; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
endef

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed; say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	$(call venv,$(VENV))
	@touch $@

$(VENV)/run.stamp: requirements.txt $(VENV)/python.stamp
	@echo "Installing requirements.txt (a few minutes the first time)"
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/test.stamp: requirements-test.txt $(VENV)/run.stamp
	@echo "Installing requirements-test.txt"
	@$(PIP) -r requirements-test.txt
	@touch $@

# Without these two libraries the demo has no page, and its table all the same. The next call tries again.
$(VENV)/page.stamp: $(VENV)/run.stamp
	@echo "Installing the two libraries of the page"
	@if $(PIP) plotly itables; then touch $@; else echo "They can't be had now, so there will be no page" >&2; fi

# Snakemake asks for older versions of some packages than training may have, so it stays apart.
$(SWEEP)/sweep.stamp: sweeps/requirements.txt
	@echo "Creating $(SWEEP) with Snakemake"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Snakemake 9 needs Python 3.11 or newer; say where it is: make sweep-setup PYTHON=/path/to/python3" >&2; exit 1; }
	$(call venv,$(SWEEP))
	@$(SWEEP)/bin/python -m pip install --quiet --disable-pip-version-check -r sweeps/requirements.txt
	@touch $@
