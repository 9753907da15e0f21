# Everything runs from .venv, which is made on the first use. Needed: Python 3.11 or newer, git, make.
#   make demo              the whole thing on your machine, until Ctrl-C (make demo SECONDS=30: ends by itself)
#   make test              all tests in random order; prints the seed (again: make test ARGS=--randomly-seed=N)
#   make test-postgres     the tests that need a server, on another PostgreSQL: PGBIN=/usr/lib/postgresql/17/bin
#   make check             what CI runs
#   make simulate          whole histories of the daemon on virtual time (make simulate SECONDS=3600)
#   make fuzz              the stream's reader against made-up bytes (CDCSYNC_FUZZ_SECONDS=600)

# The first interpreter that is new enough; override with make PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-postgres lint types format bench simulate fuzz build check clean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "cdcsync needs Python 3.11 or newer, and found none: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cdcsync needs Python 3.11 or newer, and $(PYTHON) is older" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/cdcsync demo $(if $(SECONDS),--seconds $(SECONDS))

test: $(READY)
	$(BIN)/pytest -n 2 $(ARGS)

test-postgres: $(READY)
	@test -x "$(PGBIN)/postgres" || \
	  { echo "name a directory with PostgreSQL's programs: make test-postgres PGBIN=/usr/lib/postgresql/17/bin" >&2; exit 1; }
	CDCSYNC_TEST_PGBIN=$(PGBIN) $(BIN)/pytest -n 2 tests/pg tests/faults $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

simulate: $(READY)
	$(BIN)/python -m tests.simulation --seconds $(or $(SECONDS),60) $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.wal $(ARGS)

build: $(READY)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

check:
	.ci/run

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
