# Everything happens in the environment .venv of this folder. `make` alone lists the targets.
PYTHON      ?= python3
CONSTRAINTS ?= .ci/constraints.txt
# two workers, a test file's own fixtures in one of them, in the order of tests/conftest.py; PYTEST_ARGS= runs in one process
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

VENV   := .venv
PEERS  := .venv-peers
# the lowest versions have an environment of their own; what depends on them most is tested: files, readers, networks
LOWEST       ?= .ci/lowest.txt
LOWEST_VENV  := .venv-lowest
LOWEST_TESTS ?= tests/basis tests/files tests/test_system.py tests/test_graph.py tests/test_ops.py tests/test_committee_file.py \
                tests/data/test_extxyz.py tests/data/test_hdf5.py tests/data/test_npz.py tests/train/test_recipe.py tests/nn/test_so3krates.py
WHEELS := .wheels
BIN    := $(VENV)/bin
# stamps: newer than setup.cfg means up to date
CORE   := $(VENV)/.installed-core
TEST   := $(VENV)/.installed-test
OLDEST := $(LOWEST_VENV)/.installed
INPUTS := setup.cfg setup.py $(CONSTRAINTS)
# all modules are compiled at once only where Python may not keep what it compiles when they are first imported: it takes
# a third of the time
LAZY    = $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)
PIP     = $(BIN)/python -m pip --disable-pip-version-check install $(LAZY) --quiet --quiet --constraint $(CONSTRAINTS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test coverage test-lowest drill lint format types wheel bench peers gpu-wheels clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: $(CORE) ## the package in .venv, editable, with what it needs to run
	@echo "attncalc is installed: try $(BIN)/attncalc --help"

demo: $(CORE) ## a short look at what attncalc does, pictures in demo/
	@$(BIN)/python examples/demo.py --out demo

test: $(TEST) ## all tests (PYTEST_ARGS="-k so3krates" picks some)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

coverage: $(TEST) ## all tests, which must cover 90 % of the package
	@$(BIN)/python -m pytest $(PYTEST_ARGS) --cov --cov-fail-under=90

test-lowest: $(OLDEST) ## a selection of tests with the lowest versions that setup.cfg allows (LOWEST=.ci/lowest.txt)
	@$(LOWEST_VENV)/bin/python -m pytest -m "not slow" $(LOWEST_TESTS)

drill: $(TEST) ## kills, full disks, power cuts, hostile files, links, threads (an hour), the table in docs/drill.md
	@PYTHONPATH=tests $(BIN)/python -m drill -o docs/drill.md

lint: $(TEST) ## ruff: rules and format, changes nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(TEST) ## ruff: mends what it can and formats
	@$(BIN)/ruff check --fix --exit-zero --quiet . >/dev/null # `make lint` tells what is left
	@$(BIN)/ruff format .

types: $(TEST) ## mypy on the package
	@$(BIN)/mypy

wheel: $(TEST) ## dist/attncalc-*.whl; one commit gives the same bytes every time
	@rm -rf build # what was removed since would be packed too
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 315532800) $(BIN)/python -m pip --disable-pip-version-check wheel --quiet --quiet \
	  --no-deps --no-build-isolation --wheel-dir dist . && ls dist/*.whl

bench: $(CORE) peers ## speed beside four other codes, then 20 ps of dynamics (an hour)
	@$(BIN)/python benchmarks/run.py
	@$(BIN)/python benchmarks/nve_ethanol.py

peers: $(foreach peer,so3krates-torch mace-torch nequip equiformer,$(PEERS)/$(peer)/.installed) ## what the benchmarks compare with, an environment each

$(PEERS)/%/.installed: $(CONSTRAINTS)
	@echo "attncalc: installing $* into an environment of its own, $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --constraint $(CONSTRAINTS) torch
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --constraint $(CONSTRAINTS) $*
	@touch $@

# the published Equiformer is no package, but a checkout that its environment finds
PUBLISHED := https://github.com/atomicarchitects/equiformer
OF_COMMIT := a4360ada2d213ba7b4d884335d3dc54a92b7a371
$(PEERS)/equiformer/.installed: $(CONSTRAINTS)
	@echo "attncalc: installing the published Equiformer into an environment of its own, $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --constraint $(CONSTRAINTS) torch
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --constraint $(CONSTRAINTS) ase e3nn==0.6.0 torch-geometric==2.8.1
	@rm -rf $(@D)/code
	@git clone --quiet $(PUBLISHED) $(@D)/code
	@git -C $(@D)/code checkout --quiet $(OF_COMMIT)
	@echo "$(CURDIR)/$(@D)/code" >"$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/equiformer.pth"
	@touch $@

# every manylinux that the wheels in the list are built for: pip takes no newer or older one by itself
PLATFORMS := manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1
LARGEST   := 50000000

gpu-wheels: | $(BIN)/python ## what benchmarks/gpu.py needs on a machine without network, in .wheels
	@rm -rf $(WHEELS)
	@$(BIN)/python -m pip --disable-pip-version-check download --quiet --quiet --no-deps --only-binary=:all: \
	  --implementation cp --python-version 3.12 $(PLATFORMS:%=--platform %_x86_64) \
	  --dest $(WHEELS) --requirement benchmarks/gpu_wheels.txt || { \
	  echo "attncalc: pip could not download the wheels; its reason stands above" >&2; exit 1; }
	@size=$$(cat $(WHEELS)/*.whl | wc -c); test $$size -le $(LARGEST) || { \
	  echo "attncalc: $(WHEELS) has $$((size / 1000000)) MB, the limit is $$(($(LARGEST) / 1000000)) MB" >&2; exit 1; }; \
	  echo "$(WHEELS): $$(ls $(WHEELS) | wc -l) wheels, $$((size / 1000000)) MB"

clean: ## remove what the targets made, .venv included
	rm -rf $(VENV) $(PEERS) $(LOWEST_VENV) $(WHEELS) build dist demo *.egg-info .coverage* .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "attncalc: no '$(PYTHON)' here; install Python 3.11 or newer, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "attncalc: needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) -V 2>&1); say make PYTHON=python3.12" >&2; exit 1; }
	@echo "attncalc: making the environment $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) >$(VENV).log 2>&1 || { \
	  echo "attncalc: '$(PYTHON) -m venv' failed (Debian, Ubuntu: apt install python3-venv): $$(tail -n 1 $(VENV).log)" >&2; \
	  rm -rf $(VENV) $(VENV).log; exit 1; }
	@rm -f $(VENV).log
	@# the one that comes with Python needs twice the time to choose the versions, and will do
	@$(BIN)/python -m pip --disable-pip-version-check install --retries 0 --quiet --quiet --upgrade pip || true

$(CORE): $(INPUTS) | $(BIN)/python
	@echo "attncalc: installing into $(VENV); the first time this downloads PyTorch and takes some minutes"
	@$(PIP) --editable . || { echo "attncalc: pip could not install the package; its reason stands above" >&2; exit 1; }
	@touch $@

$(TEST): $(INPUTS) | $(BIN)/python
	@echo "attncalc: installing into $(VENV) with the test tools; the first time this downloads PyTorch and takes some minutes"
	@$(PIP) --editable '.[test]' || { echo "attncalc: pip could not install the package; its reason stands above" >&2; exit 1; }
	@touch $(CORE) $@

$(OLDEST): $(INPUTS) $(LOWEST)
	@echo "attncalc: installing the lowest versions into $(LOWEST_VENV)"
	@$(PYTHON) -m venv $(LOWEST_VENV)
	@$(LOWEST_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --constraint $(LOWEST) \
	  --editable '.[train]' hypothesis pytest || { \
	  echo "attncalc: pip could not install the lowest versions; its reason stands above" >&2; exit 1; }
	@touch $@
