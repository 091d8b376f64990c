# Uptrail: `make demo` shows it at work, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench chaos lint lock

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/.ready ## create .venv from requirements.lock; the command lands at .venv/bin/uptrail

.venv/.ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## upload a folder, watch it, audit it (DIR=path to use your own files)
	@$(BIN)/uptrail demo $(if $(DIR),"$(DIR)",)

test: lint ## everything: types, style, layers, and the tests on a real PostgreSQL
	@$(BIN)/python -m pytest $(PYTEST)

lint: setup ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: setup ## measure us and the peers side by side, as ratios
	@$(BIN)/python -m benchmarks

chaos: setup ## kill processes at random for minutes and count what is left
	@$(BIN)/python -m pytest -m chaos tests/chaos $(PYTEST)

lock: ## write requirements.lock anew from pyproject.toml
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
		--group dev --quiet -o requirements.lock pyproject.toml
