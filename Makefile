# Every target makes the .venv it needs; `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# The first interpreter that is new enough and can make a virtual environment; 3.11 first, as constraints.txt is pinned on it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	command -v $$p >/dev/null 2>&1 \
	&& $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)

# Where torch's small CPU wheels are; for CUDA, e.g. https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# One process a core and one thread a process: many small tensors gain nothing from more.
WORKERS ?= auto
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 15 --durations-min 1

.DEFAULT_GOAL := help
.PHONY: audit help demo test test-fast test-312 test-oldest coverage mutants lint types format docs benchmark clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.venv: $(STAMP) ## Set up .venv, or bring it up to date with pyproject.toml and constraints.txt

# torch goes first and alone: its own index is asked for nothing else, and a machine that cannot reach it takes the
# wheel that pip finds elsewhere.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python >= 3.11 with venv was not found: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Setting up $(VENV) with $(PYTHON): a minute or two"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 \
		--extra-index-url $(TORCH_INDEX) --no-deps --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Fit FCR on the bundled Kang PBMC data; the results land in runs/demo
	$(ONE_THREAD) $(BIN)/pyro-fcr demo --out runs/demo

test: lint types ## Lint, types, every test and every tutorial
	$(PYTEST)

test-fast: $(STAMP) ## The tests without the slow ones: under five minutes on two cores
	$(PYTEST) -m "not slow"

# Lanes of their own, each in its own environment: what the suite is not pinned to.
LANE = $(ONE_THREAD) $(1)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "$(MARKS)" -p no:cacheprovider $(2)
MARKS ?= not slow
PYTHON312 ?= python3.12

test-312: ## The tests without the slow ones on Python 3.12, every package at its newest; MARKS= for all
	@test -d .venv-312 || $(PYTHON312) -m venv .venv-312
	@.venv-312/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
		--extra-index-url $(TORCH_INDEX) --editable '.[dev,zarr]'
	$(call LANE,.venv-312)

test-oldest: ## The same on every package's oldest declared version
	@test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	@mkdir -p build && .venv-oldest/bin/python -c "import tomllib; \
		p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*(r.replace('>=', '==') for r in p['dependencies'] + p['optional-dependencies']['zarr']), sep='\n')" \
		> build/oldest.txt
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint build/oldest.txt \
		--extra-index-url $(TORCH_INDEX) --editable '.[dev,zarr]'
	@# Old packages know of deprecations in newer ones that they stand on.
	$(call LANE,.venv-oldest,-W ignore::DeprecationWarning -W ignore::FutureWarning)

coverage: $(STAMP) ## Lines and branches that the tests reach; fails below 90 % of lines
	@mkdir -p build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'coverage[toml]>=7.6' pytest-cov
	$(PYTEST) -m "$(MARKS)" --cov=pyro_fcr --cov-branch --cov-report=term:skip-covered --cov-report=json:build/coverage.json
	@$(BIN)/python -c "import json, sys; t = json.load(open('build/coverage.json'))['totals']; \
		lines, branches = (100 * t['covered_' + k] / t['num_' + n] for k, n in (('lines', 'statements'), ('branches', 'branches'))); \
		print(f'lines {lines:.1f} %, branches {branches:.1f} %'); sys.exit(lines < 90)"

mutants: $(STAMP) ## Change objective, permutation and counterfactual code a little, and see that a test notices
	$(ONE_THREAD) $(BIN)/python benchmarks/mutants.py

lint: $(STAMP) ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## Check the package's types
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the sources in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## Build the site, tutorials executed, into site/
	$(ONE_THREAD) PYRO_FCR_DOCS_EXECUTION=force $(BIN)/sphinx-build -W --keep-going -q -b html -c docs -d build/doctrees . site
	@echo "open site/docs/index.html"

benchmark: $(STAMP) ## Run every benchmark, or WHICH="null recovery", into benchmarks/results; takes long
	$(BIN)/pyro-fcr benchmark $(or $(WHICH),all) --out benchmarks/results

# In an environment of its own. --strict: a package that could not be looked up is no package without faults.
audit: $(STAMP) ## Look up the pinned versions among known vulnerabilities; needs the network
	@test -x build/audit/bin/pip-audit || { $(BIN)/python -m venv build/audit \
		&& build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit; }
	build/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

clean: ## Remove caches and builds; .venv and runs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find pyro_fcr tests benchmarks tutorials -name __pycache__ -type d -prune -exec rm -rf {} +
