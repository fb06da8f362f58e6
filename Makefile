# The one list of commands; CI calls it too.
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
JOBS ?= auto
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := redis,postgres,flower,graph,prometheus,otel,sentry

.PHONY: help setup demo test test-slow test-lowest docs chaos bench bench-scale walk
.PHONY: check lint types imports coverage format clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## virtual environment with everything

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]' --group dev
	@touch $@

demo: $(READY) ## run the example shop with a real worker
	@$(BIN)/python -m examples.shop.demo

test: $(READY) ## run all tests; those that need a server say so when they skip
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(READY) ## run all tests, and list the 20 that took longest
	$(BIN)/python -m pytest -n $(JOBS) --durations=20

test-lowest: $(LOWEST)/.ready ## run the tests that need no server, with the lowest versions that may be installed
	$(LOWEST)/bin/python -m pytest -n $(JOBS) -m 'not server' tests/unit tests/contract

# Without --no-deps, uv takes a higher version where a lowest one cannot be installed.
$(LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --no-deps --all-extras \
		--no-header --no-annotate pyproject.toml >$(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --constraints $(LOWEST)/lowest.txt \
		--editable '.[$(EXTRAS)]' --group dev
	@touch $@

docs: $(READY) ## write the reference from the code, and build the site into site/
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -W ignore docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

chaos: $(READY) ## kill, freeze and empty everything, in full size; takes hours
	$(BIN)/python -m tests.chaos --size full

bench: $(READY) ## measure what Nitro costs beside what people write by hand
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks --json benchmarks.json

bench-scale: $(READY) ## draw how time and memory grow, into docs/growth.svg
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks.scale --svg docs/growth.svg

walk: $(READY) ## show the files that an emit and a worker's run pass through
	@$(BIN)/python -m benchmarks.walk

check: lint types imports test ## everything that CI wants

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

coverage: $(READY) ## tests with branch coverage, worker processes included; fails below pyproject.toml's fail_under
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

format: $(READY) ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the commands made
	rm -rf $(VENV) $(LOWEST) site .nitro nitro.db* dist benchmarks.json .bench-* .coverage* .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
