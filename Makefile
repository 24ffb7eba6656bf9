# Every target sets up what it needs in .venv, once: a stamp file remembers it until pyproject.toml or the pins change.
# PYTHON     the Python to build .venv with (3.11 or newer)
# ARGS       arguments of the quickstart, for example ARGS="--encoder distilbert-base-uncased"
# NOTEBOOKS  the notebooks to run, all if left out
# PYTEST     arguments of pytest, for example PYTEST="-k stitch"
# PIP_FLAGS  arguments of uv, for example an index that serves CPU builds of torch; pip knows the same ones
# RANGE      the test files of test-oldest and test-newest: those that speak to the Auto classes, Trainer, the Hub
# TORCH      the torch of these two, that of constraints/dev.txt if left out

PYTHON ?= python3
ARGS ?=
NOTEBOOKS ?=
PYTEST ?=
PIP_FLAGS ?=
RANGE ?= classification datasets hub_pull hub_push modeling pipelines stitching
TORCH ?= $(shell sed -n 's/^torch==//p' $(PINS))

VENV := .venv
BIN := $(VENV)/bin
PINS := constraints/dev.txt
OLDEST := .venv-oldest
NEWEST := .venv-newest
# -qq: pip's warnings are about the machine's indices, its errors still show.
PIP := -m pip install -qq --disable-pip-version-check
# $(call install,environment,what): uv installs in seconds what takes pip minutes. It reads none of pip's settings, so those
# of the environment are handed on; where it fails all the same, as where an index stands in a file of pip's, pip is asked.
install = $(BIN)/python -m uv pip install -q --python $(1)/bin/python $(2) $(PIP_FLAGS) || $(1)/bin/python $(PIP) $(2) $(PIP_FLAGS)
INSTALL = $(call install,$(VENV),--constraint $(PINS) $(1))
export UV_INDEX_STRATEGY ?= unsafe-best-match
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(shell echo $(PIP_FIND_LINKS) | tr ' ' ',')
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_EXTRA_INDEX_URL
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif
# Threads that wait without spinning: beside other work on the same cores training is many times faster so.
QUICKSTART_ENVIRONMENT := OMP_WAIT_POLICY=$(or $(OMP_WAIT_POLICY),PASSIVE)
# Two test processes, one thread each: more threads than cores make both slower.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder
RUN_TESTS := $(TEST_ENVIRONMENT) $(BIN)/python -m pytest $(TWO_PROCESSES)
RANGE_TESTS = $(patsubst %,tests/test_%.py,$(RANGE))
# The tests call gradient checkpointing by the name that transformers 5.23 gave it.
OLDEST_KNOWS := 'not gradient_checkpointing'
RANGE_RUNS := $(shell sed -n '/^hypothesis=\|^pytest/p' $(PINS))
# What local_hub needs: its oldest version, the newest or the pinned one, as the constraints of the environment say.
HUB_RUNS := starlette uvicorn
QUICKSTART_HUB := quickstart_output/hub
SOURCES := hf_relreps hf_relreps_cli.py local_hub tests benchmarks examples notebooks docs/conf.py docs/errors_page.py docs/examples.py docs/notebook_pages.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: quickstart notebooks test test-all test-gpu test-oldest test-newest test-wheel nightly audit quality style docs build clean help

quickstart: $(VENV)/.demo-installed  ## train four encoders, push them, pull parts of them and stitch (ARGS="...")
	@rm -rf $(QUICKSTART_HUB)
	@$(QUICKSTART_ENVIRONMENT) $(BIN)/python -m local_hub --root $(QUICKSTART_HUB) --cache $(QUICKSTART_HUB)/cache -- \
	  $(BIN)/hf-relreps quickstart --hub-user local-user $(ARGS)

notebooks: $(VENV)/.test-installed  ## run the notebooks and write their outputs (NOTEBOOKS="..." names some)
	@$(BIN)/python notebooks/run.py $(NOTEBOOKS)

test: quality  ## all checks, and all tests that are fast and need no network
	$(RUN_TESTS) $(PYTEST)

test-all: quality  ## the same and the slow tests
	$(RUN_TESTS) -m "not hub and not gpu" $(PYTEST)

test-gpu: $(VENV)/.test-installed  ## the tests that need an accelerator, in one process
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m gpu $(PYTEST)

nightly: $(VENV)/.test-installed  ## long versions of the reliability tests: fuzz, kill, ranks, numbers, load
	for item in fuzz kill ranks numbers load; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability $$item || exit 1; done

audit: $(VENV)/.test-installed  ## known vulnerabilities in the pinned versions; asks the advisory service
	@$(call INSTALL,pip-audit)
	$(BIN)/pip-audit --requirement $(PINS) --no-deps --disable-pip

quality: $(VENV)/.test-installed  ## lint, format, types, floors, spelling; changes nothing
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

style: $(VENV)/.test-installed  ## fix what ruff can fix
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

test-oldest: $(OLDEST)/.installed  ## the tests of other libraries' APIs, with the oldest versions of these
	$(TEST_ENVIRONMENT) $(OLDEST)/bin/python -m pytest $(TWO_PROCESSES) -k $(OLDEST_KNOWS) $(RANGE_TESTS) $(PYTEST)

test-newest: $(NEWEST)/.installed  ## the same with the newest versions that the index has
	$(TEST_ENVIRONMENT) $(NEWEST)/bin/python -m pytest $(TWO_PROCESSES) $(RANGE_TESTS) $(PYTEST)

docs: $(VENV)/.test-installed  ## the documentation as pages that need no network, in build/docs
	@$(BIN)/sphinx-build -q -E -W --keep-going docs build/docs
	@echo "Open build/docs/index.html"

build: $(VENV)/.test-installed  ## sdist and wheel in dist/
	$(BIN)/python -m build --installer uv

test-wheel: $(VENV)/.test-installed  ## build, install into an empty environment, run the README's offline example there
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m slow tests/test_packaging.py $(PYTEST)

clean:  ## remove .venv and everything that can be made again
	rm -rf $(VENV) $(OLDEST) $(NEWEST) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis quickstart_output
	find hf_relreps local_hub tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: found $$($(PYTHON) --version 2>&1), expected Python 3.11 or newer. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python $(PIP) --constraint $(PINS) uv $(PIP_FLAGS)
	@touch $@

$(VENV)/.demo-installed: $(VENV)/.created pyproject.toml $(PINS)
	@echo "Installing hf_relreps[demo] into $(VENV): minutes the first time (torch, transformers, datasets)"
	@$(call INSTALL,$(HUB_RUNS) --editable '.[demo]')
	@touch $@

$(VENV)/.test-installed: $(VENV)/.created pyproject.toml $(PINS)
	@echo "Installing hf_relreps[dev] into $(VENV): minutes the first time (torch, transformers, datasets)"
	@$(call INSTALL,--editable '.[dev]')
	@touch $@

$(OLDEST)/.installed $(NEWEST)/.installed: %/.installed: $(VENV)/.created pyproject.toml $(PINS) constraints/oldest.txt
	@echo "Installing hf_relreps[demo] into $*"
	@$(PYTHON) -m venv --clear $*
	@$(call install,$*,$(if $(filter $(OLDEST),$*),--constraint constraints/oldest.txt) torch==$(TORCH) $(RANGE_RUNS) $(HUB_RUNS) --editable '.[demo]')
	@touch $@
