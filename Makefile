# Every target sets up what it needs in .venv, once: a stamp file remembers it until pyproject.toml or the pins change.
# PYTHON     the Python to build .venv with (3.11 or newer)
# ARGS       arguments of the quickstart, for example ARGS="--encoder distilbert-base-uncased"
# NOTEBOOKS  the notebooks to run, all if left out
# PYTEST     arguments of pytest, for example PYTEST="-k stitch"
# PIP_FLAGS  arguments of pip, for example an index that serves CPU builds of torch

PYTHON ?= python3
ARGS ?=
NOTEBOOKS ?=
PYTEST ?=
PIP_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PINS := constraints/dev.txt
# -qq: pip's warnings are about the machine's indices, its errors still show.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint $(PINS) $(PIP_FLAGS)
# Two test processes, one thread each: more threads than cores make both slower.
RUN_TESTS := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile
SOURCES := hf_relreps tests benchmarks notebooks

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: quickstart notebooks test test-all nightly audit quality style build clean help

quickstart: $(VENV)/.demo-installed  ## train four encoders, push them, pull parts of them and stitch (ARGS="...")
	@$(BIN)/hf-relreps quickstart $(ARGS)

notebooks: $(VENV)/.test-installed  ## run the notebooks and write their outputs (NOTEBOOKS="..." names some)
	@$(BIN)/python notebooks/run.py $(NOTEBOOKS)

test: quality  ## all checks and all tests that need neither network nor patience
	$(RUN_TESTS) $(PYTEST)

test-all: quality  ## the same and the slow tests
	$(RUN_TESTS) -m "not hub and not gpu" $(PYTEST)

nightly: $(VENV)/.test-installed  ## long versions of the reliability tests: fuzz, kill, ranks, numbers, load
	for item in fuzz kill ranks numbers load; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability $$item || exit 1; done

audit: $(VENV)/.test-installed  ## known vulnerabilities in the pinned versions; asks the advisory service
	@$(PIP_INSTALL) pip-audit
	$(BIN)/pip-audit --requirement $(PINS) --no-deps --disable-pip

quality: $(VENV)/.test-installed  ## lint, format, types, floors, spelling; changes nothing
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

style: $(VENV)/.test-installed  ## mend what ruff can mend
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

build: $(VENV)/.test-installed  ## sdist and wheel in dist/
	$(BIN)/python -m build

clean:  ## remove .venv and everything that can be made again
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis quickstart_output
	find hf_relreps tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: found $$($(PYTHON) --version 2>&1), expected Python 3.11 or newer. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo-installed: $(VENV)/.created pyproject.toml $(PINS)
	@echo "Installing hf_relreps[demo] into $(VENV): minutes the first time (torch, transformers, datasets)"
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.test-installed: $(VENV)/.created pyproject.toml $(PINS)
	@echo "Installing hf_relreps[test,quality] into $(VENV): minutes the first time (torch, transformers, datasets)"
	@$(PIP_INSTALL) --editable '.[test,quality]'
	@touch $@
