# Everything a developer types. The targets set up what they need by themselves: python3 (3.11 or later) with its venv
# module and make are enough to begin with.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A directory with a pyproject.toml is a distribution of its own.
PACKAGES := core $(patsubst %/pyproject.toml,%,$(wildcard plugins/protocols/*/pyproject.toml plugins/filters/*/pyproject.toml plugins/*/pyproject.toml))
SOURCES := $(addsuffix /src,$(PACKAGES))
TOOLS := hatchling editables argparse-manpage pytest pytest-timeout pytest-xdist hypothesis mypy ruff
JOBS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(JOBS) -q

.PHONY: help demo test test-all lint format bench bench-scale man qemu-img clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## build a file system image, take it through all formats, show that it is still the same
	@PATH="$(CURDIR)/$(BIN):$$PATH" demo/run

test: $(READY)  ## run the tests (a few minutes)
	@$(PYTEST) -m "not slow"

test-all: $(READY)  ## run the tests, the long ones too
	@$(PYTEST)

lint: $(READY)  ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(SOURCES) benchmarks
	@$(BIN)/mypy core/manpages.py

format: $(READY)  ## bring the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)  ## measure beside the installed qemu-img; ARGS="--quick", ARGS="--help"
	@$(BIN)/python -m benchmarks $(ARGS)

bench-scale: $(READY)  ## measure how time and memory grow; the same ARGS
	@$(BIN)/python -m benchmarks --scale $(ARGS)

man: $(READY)  ## write the manual pages to build/man
	@rm -rf build/man
	@$(BIN)/python core/manpages.py build/man

qemu-img: $(READY)  ## install a command qemu-img into the environment that is diskwright
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation ./packages/qemu-img-link
	@echo "$(BIN)/qemu-img is diskwright"

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find core plugins tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The build backend is installed once and shared (--no-build-isolation), instead of once for each package.
$(READY): Makefile constraints.txt pyproject.toml $(addsuffix /pyproject.toml,$(PACKAGES))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diskwright needs Python 3.11 or later (make PYTHON=...)")'
	@test -x $(BIN)/python || { echo "Setting up $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TOOLS)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation \
		$(addprefix -e ./,$(PACKAGES)) -e .
	@$(BIN)/python -m compileall -q $(SOURCES)
	@touch $@
