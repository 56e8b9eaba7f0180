# Every target makes .venv when it is missing. PYTHON may name any Python >= 3.11.
PYTHON ?= python3
# Processes that `make test` uses, each with one thread. Every one takes up to 2 GB.
TEST_WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
export RELEVANCE_HOME ?= $(CURDIR)/.relevance

.PHONY: help install demo test test-slurm test-postgres test-browser test-kills lint ui clean
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(VENV) && uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[test]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'; \
	fi
	@touch $@

install: $(VENV)/.installed  ## make .venv with the pinned versions

demo: install  ## synthetic cohort -> models -> relevance maps -> results.duckdb
	@$(BIN)/relevance-assets demo

test: install  ## the whole test suite, with coverage
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

# What only some of the tests need, by the name of its extra.
$(VENV)/.%: $(VENV)/.installed
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[$*]'; \
	else \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$*]'; \
	fi
	@touch $@

test-slurm: $(VENV)/.dask  ## relevance maps as jobs of a real Slurm, brought up here (Debian: slurmctld, slurmd)
	@RELEVANCE_TEST_SLURM=1 $(BIN)/python -m pytest tests/slurm tests/test_execution.py -s -rs

test-postgres: $(VENV)/.dask $(VENV)/.postgres  ## a study whose instance is a real Postgres (Debian: postgresql)
	@RELEVANCE_TEST_POSTGRES=1 $(BIN)/python -m pytest tests/postgres -s -rs

test-browser: $(VENV)/.browser  ## the web UI, seen through headless Chromium (Debian: chromium)
	@RELEVANCE_TEST_BROWSER=1 $(BIN)/python -m pytest tests/browser -rs

test-kills: install  ## the service and its parts killed ten times; a quarter of an hour
	@RELEVANCE_KILLS=10 $(BIN)/python -m pytest tests/kills -s -rs

lint: install  ## ruff (lint, format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

ui: install  ## Dagster's web UI on 127.0.0.1:3000, with the history of what ran
	@$(BIN)/relevance-assets ui

clean:  ## remove .venv (results in .relevance stay)
	@rm -rf $(VENV)
