# Fresh machine: Python >= 3.11 and make are enough. `make demo`, `make test` and `make lint` create .venv when it is missing or out of date.
# PYTHON=/path/to/python3 selects the interpreter; VENV=/path/to/folder another environment.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.cmidiff-installed
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

# Threads that spin while they wait slow a busy machine down twentyfold.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint docs results package format clean

help:  ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: $(STAMP)  ## create .venv and install cmidiff into it

$(STAMP): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || { \
	  echo "cmidiff needs Python 3.11 or newer with its venv module; found: $$(python3 --version 2>&1 || echo none)." >&2; \
	  echo "Install one (Debian and Ubuntu: also the package python3-venv) or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) ..."; "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing cmidiff and its libraries (torch is large; a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## restore a photograph with and without CMI; writes demo.png
	$(BIN)/cmidiff demo --output demo.png

serve: $(STAMP)  ## restore photographs in the browser
	$(BIN)/cmidiff serve --open

test: $(STAMP)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(STAMP)  ## ruff, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: $(STAMP)  ## build the documentation into build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

results: $(STAMP)  ## list every figure and table of README and docs with its command, commit and age
	@$(BIN)/python benchmarks/list_results.py

package: $(STAMP)  ## build wheel and sdist; install the wheel into an environment of its own and run the demo there
	rm -rf build/package && $(BIN)/python -m build --quiet --outdir build/package
	$(BIN)/python -m venv build/package/venv
	build/package/venv/bin/pip install --quiet --disable-pip-version-check build/package/*.whl
	cd build/package && venv/bin/cmidiff demo --output demo.png

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
