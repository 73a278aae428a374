# `make` lists the targets. They need Python 3.11 or newer and make, and nothing else: uv (in .uv) and the
# environment (in .venv) are made on first use, from requirements.txt, and again when that file changes.

PYTHON ?= python3
UV_VERSION := 0.13.9

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
UV := .uv/bin/uv

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 make ... chooses the Python (3.11 or newer); now: $(PYTHON)"

demo: $(READY) ## Train small tokenizers and a diffusion network here, write a report; SHORT=1: all its steps, cut short
	$(BIN)/lumitok demo $(if $(filter-out 0,$(SHORT)),--fast)

test: $(READY) ## Run the tests; ARGS="-k config -x" passes arguments to pytest
	$(BIN)/pytest -n auto --maxprocesses 4 $(ARGS)

lint: $(READY) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## Run every benchmark; each prints a table
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## Remove the environment and the caches; runs/ stays
	rm -rf $(VENV) .uv dist .pytest_cache .ruff_cache .mypy_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "lumitok needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) --version 2>&1`;" \
			"name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(READY): requirements.txt pyproject.toml Makefile | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements.txt -e .
	@touch $@
