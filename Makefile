# Every target sets itself up: .venv from uv.lock, for `test` the servers too. See deploy/dev/setup.sh.
#   make test PYTEST="tests/test_hashing.py -k stable" JOBS=0    make demo ARGS="--help"    PYTHON=/path/to/python make test

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTEST ?=
ARGS ?=
SEED ?=
JOBS ?= 2
KILLS ?= 100

.PHONY: help demo test chaos azure check fmt bench train clean run-env dev-env train-env

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 14

demo: run-env ## the whole pipeline on this machine, about a minute, ends with a table
	@$(BIN)/voltmill demo $(ARGS)

test: dev-env ## every test and every example in the docstrings
	@deploy/dev/servers.sh
	@PATH="$(CURDIR)/.cache/servers/bin:$$PATH:/usr/sbin" \
		$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)

chaos: dev-env ## kill -9, outages and restarts for an hour; prints the losses (none) and tests/chaos/latest.json
	@deploy/dev/servers.sh
	@PATH="$(CURDIR)/.cache/servers/bin:$$PATH:/usr/sbin" PYTHONPATH=tests \
		$(BIN)/python -m chaos --kills $(KILLS) $(if $(SEED),--seed $(SEED)) $(ARGS)

azure: dev-env ## the shape it has on Azure, whole, on this machine, with kill -9 in the middle; ends with a table
	@deploy/dev/servers.sh
	@PATH="$(CURDIR)/.cache/servers/bin:$$PATH:/usr/sbin" PYTHONPATH=tests $(BIN)/python -m azure_shape $(ARGS)

check: dev-env ## style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fmt: dev-env ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: dev-env ## messages per second on one core, and what limits them
	@$(BIN)/python benchmarks/run.py $(ARGS)

train: train-env ## fit the cell, train every model anew, draw the pictures (downloads PyTorch; data: VOLTMILL_DATA)
	@for part in cell_model ekf soc soh_tune soh rul baselines plots; do \
		echo "== training/$$part.py"; \
		OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python training/$$part.py; \
	done

clean: ## remove what was built and cached; .venv stays
	@rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -not -path './.cache/*' -prune -exec rm -rf {} +

run-env dev-env train-env:
	@deploy/dev/setup.sh $(@:-env=)
