# Everything that is done with this project. Each target sets up what it needs: a virtual environment in .venv
# (Python 3.11 or newer, pip, a package index), and nothing outside this folder but what is built for tests, in the
# user's cache. A second call is instant.

PYTHON ?= python3
BIN := .venv/bin
ENGINES ?= all
# What is installed is named by pyproject.toml: a change of it installs anew.
KEY := $(shell sha256sum pyproject.toml | cut -c1-16)
BASE := .venv/.base-$(KEY)
TEST := .venv/.test-$(KEY)
CHECK := .venv/.check-$(KEY)

.NOTPARALLEL:
.PHONY: help demo demo-translation test check bench bench-gpu bench-translation sim e2e dev mutants docs format clean

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(BASE) ## a server with small models and a tour of it
	$(BIN)/modelyard demo

demo-translation: $(TEST) ## small models that translate: three pairs, and who is loaded for them
	$(BIN)/python scripts/demo_translation.py

test: $(TEST) ## the test suite, real engines and clients apart
	$(BIN)/pytest -q -m "not e2e" -n auto --maxprocesses 4 --dist loadfile

e2e: $(TEST) ## real engines and real clients (ENGINES= without those that take 9 GB and minutes to install)
ifneq ($(ENGINES),)
	PYTHON="$(PYTHON)" scripts/engines-env
	PYTHON="$(PYTHON)" scripts/libretranslate-env
	if command -v go >/dev/null; then scripts/build-ollama; fi
endif
	$(BIN)/pytest -q -m e2e

check: $(CHECK) ## style, types, layers, generated documents
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_docs.py --check

bench: $(TEST) ## every number of the documentation, measured here (needs Go)
	$(BIN)/python bench/run.py

bench-gpu: ## what sleep costs on a GPU (PYTHON: one that has `modelyard[transformers]`)
	PYTHONPATH=src $(PYTHON) bench/gpu_sleep.py

bench-translation: ## what batching is worth to translations (8 GB are installed for it, but with a PYTHON that has `modelyard[transformers,translation]`)
ifeq ($(origin PYTHON),file)
	scripts/engines-env
	PYTHONPATH=src .cache/engines/bin/python bench/translating.py
else
	PYTHONPATH=src $(PYTHON) bench/translating.py
endif

sim: $(BASE) ## replay traces on a virtual clock
	$(BIN)/python -m modelyard.sim

dev: $(TEST) $(CHECK) ## an environment to work in
	@echo "Ready: . .venv/bin/activate"

mutants: $(TEST) $(CHECK) ## change the core in a thousand ways; the tests have to notice (half an hour)
	nice -n 15 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

docs: $(CHECK) ## write the generated documents anew
	$(BIN)/python scripts/generate_docs.py

format: $(CHECK) ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove everything that was made here
	rm -rf .venv .cache bench/out sim-out dist build .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis mutants

$(BASE):
	PYTHON="$(PYTHON)" scripts/install base
	touch $@

$(TEST):
	PYTHON="$(PYTHON)" scripts/install test
	touch $@ $(BASE)

$(CHECK):
	PYTHON="$(PYTHON)" scripts/install check
	touch $@
