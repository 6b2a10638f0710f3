# Everything a person needs is one of these targets; `make` alone lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test unit chaos check lock clean

help:            ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

venv: $(VENV)/.ready   ## the environment alone
$(VENV)/.ready: pyproject.toml requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "livevec needs Python 3.11 or newer: install the package python3.11 (and python3.11-venv)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "python's venv is missing: install the package python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar on --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: venv       ## everything, live: servers, a real corpus, edits, percentiles, a search
	$(BIN)/livevec demo

test: venv       ## all tests, in two processes, with the real servers, which they start and stop
	$(BIN)/python -m pytest tests -n 2 --dist loadgroup $(PYTEST_OPTIONS)

unit: venv       ## the tests that start no server, in under a minute
	$(BIN)/python -m pytest tests/unit -n 2 --dist loadgroup $(PYTEST_OPTIONS)

chaos: venv      ## the fault tests alone, with the seconds that each part took to recover
	$(BIN)/python -m pytest tests/chaos -s

check: venv      ## style, types and the floors of the house
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

lock:            ## renew the locks (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-index-url pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-index-url --extra local --extra dev pyproject.toml -o requirements-dev.lock

clean:           ## forget the embedded stack's state and downloads
	[ ! -x $(BIN)/livevec ] || $(BIN)/livevec down || true
	rm -rf .livevec
