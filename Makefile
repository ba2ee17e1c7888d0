# Everything runs from a fresh clone with Python 3.11 and nothing else: the first target that needs
# it makes .venv from the pinned versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# Where to read and write, and with which settings; Dagster's own processes see them too.
export PHASEWATCH_CONFIG := $(CONFIG)
export PHASEWATCH_STORE := $(STORE)
export PHASEWATCH_ARTIFACTS := $(ARTIFACTS)

.DEFAULT_GOAL := help
.PHONY: help run ui test e2e live ray faults mutants bench bench-scale yardstick lint lock clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /make \1\t/' | expand -t 18

# pip compiles nothing, which saves a third of the time: Python compiles a module on first import. Where
# it may not keep the result, it would do so in every process, so everything is compiled once
.venv/.installed: pyproject.toml constraints.txt
	@echo "installing into .venv: about 1 GB of downloads, a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[train,orchestrate,serve,sign,dev]'
	$(if $(PYTHONDONTWRITEBYTECODE),$(BIN)/python -m compileall -qq -j 0 .venv/lib || true)
	touch $@

run: .venv/.installed  ## validate, extract, split, train, evaluate, report (STORE=, ARTIFACTS=, CONFIG=, RECIPE=)
	$(BIN)/phasewatch run $(if $(RECIPE),--recipe $(RECIPE))

ui: .venv/.installed  ## open Dagster on http://127.0.0.1:3000 (STORE=, ARTIFACTS=, CONFIG=)
	$(BIN)/phasewatch ui

# four workers on two cores: tests often wait for processes they start
test: lint  ## linters, types, import rules and the test suite
	$(BIN)/python -m pytest -n 4 --dist worksteal

lint: .venv/.installed  ## linters, types and import rules only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $$(git ls-files '*.py' '*.md' '*.j2' '*.css' '*.html' '*.js' '*.yaml' '*.toml' ':!hub/page/vendor/' Makefile)
	$(BIN)/deptry .
	$(BIN)/deptry . tests --exclude '\.venv|artifacts|build' --ignore DEP002,DEP004
	$(BIN)/dg check defs

e2e: .venv/.installed  ## the workflow in a real Dagster and browser: a growing store, a night, a backfill, drift
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'playwright>=1.60'
	$(BIN)/python -m pytest -m long
	PYTHONPATH=. $(BIN)/python tests/e2e.py

live: .venv/.installed  ## champion, bundle, scorer, hub and page, watched by a real browser
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'playwright>=1.60'
	PYTHONPATH=. $(BIN)/python tests/e2e_live.py

ray: .venv/.installed  ## the graph on two nodes of a Ray cluster, recorded in PostgreSQL
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest -rs tests/test_ray.py

faults: .venv/.installed  ## kills, full disks, damage, races, hostile input: what was noticed, lost or wrong
	PYTHONPATH=.:tests $(BIN)/python -m faults

mutants: .venv/.installed  ## small changes of code under a checkpoint: is each noticed? (an hour)
	EVERY_CHANGE=1 $(BIN)/python -m pytest -q tests/test_code.py -k "every_change or comments"
	PYTHONPATH=.:tests $(BIN)/python tests/mutants.py --out artifacts/mutants.jsonl

# rates are of one core: a library that waits in a second thread would pay for that
BENCH := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(BIN)/python -m benchmarks

.venv/.bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

bench: .venv/.bench  ## costs compared with peers and limits, under 15 minutes: artifacts/bench/ (STORE=, ARTIFACTS=)
	$(BENCH).extraction
	$(BENCH).bootstrap
	$(BENCH).training
	$(BENCH).reading
	$(BENCH).hub
	$(BENCH).device

bench-scale: .venv/.bench  ## what needs a large store, under an hour: artifacts/bench/ (ARTIFACTS=)
	$(BENCH).growth --episodes 9500 --days 1 --rounds 3
	$(BENCH).reading --scale
	$(BENCH).partitions
	$(BENCH).evaluation
	$(BENCH).retention
	$(BENCH).million --windows 100000 --shards 100

# aeon needs an older Numba, and torch for Hydra
artifacts/cache/rockets/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check aeon==1.6.0 torch==2.13.0
	touch $@

# only its data are used, so the library is not installed
WATCH := artifacts/cache/watch/seglearn-1.2.5-py3-none-any.whl
$(WATCH): | .venv/.installed
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D) seglearn==1.2.5

yardstick: run artifacts/cache/rockets/.installed $(WATCH)  ## the models compared with a random forest, MiniRocket and MultiRocket-Hydra; a public leak shown (STORE=, ARTIFACTS=, CONFIG=)
	$(BIN)/python -m benchmarks.leak $(WATCH)
	$(BIN)/python -m benchmarks.yardstick --aeon artifacts/cache/rockets/bin/python

artifacts/cache/lock/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check pip-tools==7.6.2
	touch $@

lock: artifacts/cache/lock/.installed  ## rebuild constraints.txt from pyproject.toml; keep pinned versions (UPGRADE=1: take the newest)
	CUSTOM_COMPILE_COMMAND='make lock' $(<D)/bin/pip-compile --quiet --all-extras --allow-unsafe --strip-extras \
		--annotation-style line --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		$(if $(UPGRADE),--upgrade) --output-file constraints.txt pyproject.toml
	sed -i 's/+cpu//' constraints.txt

# what people wrote stays: exclusions, and answers in the log of decisions
WRITTEN := $(or $(ARTIFACTS),artifacts)
clean:  ## remove everything a run wrote (the environment stays) (ARTIFACTS=)
	@cd '$(WRITTEN)' && { test '$(WRITTEN)' = artifacts -o -d dagster_home -o -d contracts -o -d decisions -o -f exclusions.yaml -o -z "$$(ls -A)" || { echo '$(WRITTEN): phasewatch has not written there' >&2; exit 1; }; }
	cd '$(WRITTEN)' && find . -mindepth 1 -not -type d -not -name README.md -not -name exclusions.yaml -not -path '*/decisions/*' -delete
	cd '$(WRITTEN)' && find . -mindepth 1 -type d -empty -delete
