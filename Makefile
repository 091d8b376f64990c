# Uptrail: `make demo` runs a demonstration, `make test` runs every check.
BIN := .venv/bin
NEWEST := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,\
	$(shell $(python) -c '$(NEWEST)' 2>/dev/null && echo $(python))) no-python-3.11)
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
WORKERS ?= 4
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench soak chaos simulate mutants lint lock

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/.ready ## create .venv from requirements.lock; installs the command .venv/bin/uptrail

# Replace the .venv if its Python is too old; otherwise keep it, which is faster.
.venv/.ready: requirements.lock pyproject.toml
	@$(BIN)/python -c '$(NEWEST)' 2>/dev/null || $(MAKE) --no-print-directory .venv/new
	@echo "installing the packages of requirements.lock"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: .venv/new
.venv/new:
	@command -v $(PYTHON) >/dev/null || { echo "Uptrail needs Python 3.11 or newer. Name one: make setup PYTHON=/path/to/python3"; exit 1; }
	@echo "creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv

demo: setup ## upload a folder, watch its progress, verify the log (DIR=path for your own files)
	@$(BIN)/uptrail demo $(if $(DIR),"$(DIR)",)

test: lint ## all checks: style, types, layers, and the tests on a real PostgreSQL
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

lint: setup ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: setup ## measure Uptrail and its peers side by side, as ratios
	@$(BIN)/python -m benchmarks

soak: setup ## soak test: mixed traffic with kills for MINUTES (30), result to PAGE (PAGE=docs/soak.md)
	@$(BIN)/python -m benchmarks.soak --minutes $${MINUTES:-30} $(if $(PAGE),--page $(PAGE),)

chaos: setup ## chaos tests: kill processes for CHAOS_SECONDS (300) and at every await; verify the log
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-300} $(BIN)/python -m pytest -s tests/chaos tests/crash $(PYTEST)

simulate: setup ## run random simulations for MINUTES (10), or a number of SEEDS, or one SEED with its log
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(MINUTES),--minutes $(MINUTES))

mutants: setup ## mutation testing: each small fault must fail a test (ONLY=names, TABLE=file)
	@$(BIN)/python -m tests.mutants.run $(ONLY) $(if $(TABLE),--table $(TABLE),)

lock: setup ## generate requirements.lock from pyproject.toml
	@$(PIP) install uv
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --group dev --quiet -o requirements.lock pyproject.toml
