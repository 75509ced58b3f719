# The commands of this project. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Test processes at once; a file stays in one of them. Much of a test is waiting for Ray, so they are more than the cores.
TEST_PROCESSES ?= 3
PARALLEL := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# An index with another build of the same torch, such as a smaller one without CUDA; empty: pip's default.
TORCH_INDEX_URL ?=
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check prove bench arena docs site

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: .venv/.ready ## make .venv with the locked dependencies; reused while the lock is unchanged

.venv/.ready: requirements.lock requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "pip>=26,<27" "setuptools>=77" wheel
	# torch with what it depends on: builds for GPUs bring libraries that the lock, made on a CPU, does not name.
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	grep -hvE '^(torch|deepspeed)==' requirements.lock requirements-dev.lock > .venv/rest.txt
	$(BIN)/python -m pip install -q --no-deps -r .venv/rest.txt
	# DeepSpeed is built here, and its build reads the torch that is installed.
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation "$$(grep '^deepspeed==' requirements.lock)"
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e '.[demo,dev]'
	@touch $@

demo: setup ## adapt, harvest, fit, compare and report on Gemma 3 270M (about 22 minutes on 2 cores by its plan)
	$(BIN)/python jobs/sweep.py config=jobs/configs/demo.yaml

test: setup ## every test but the long repetitions
	$(PYTEST) -m "not prove" $(PARALLEL) --durations=40 --durations-min=5 tests

test-fast: setup ## the tests that start no Ray, server or browser
	$(PYTEST) -m "not prove and not slow and not browser and not demo" $(PARALLEL) tests

check: setup site ## lint, formatting, types, floors, the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(PYTEST) -q tests/test_floors.py

prove: setup ## long repetitions; dated output goes to tests/evidence/
	mkdir -p tests/evidence
	set -o pipefail; $(PYTEST) -v -m prove -n 2 --dist loadfile tests --timeout=7200 2>&1 | tee tests/evidence/$$(date +%F)-prove.txt

docs: setup ## write docs/metrics.md from the catalogue of metrics
	$(BIN)/python -m deltasae_ray.metrics.documentation docs/metrics.md

site: setup ## build the documentation as a site in site/; a dead link or a page outside the menu fails it
	$(BIN)/python -m deltasae_ray.command.reference docs
	$(BIN)/python -m mkdocs build --strict

arena: setup ## methods scored on 64 tiny adapters of known truth; dated output goes to tests/evidence/
	mkdir -p tests/evidence
	set -o pipefail; $(BIN)/python jobs/arena.py 2>&1 | tee tests/evidence/$$(date +%F)-arena.txt

bench: setup ## benchmarks: ratios side by side in one run
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit 1; done
prove arena: SHELL := /bin/bash
