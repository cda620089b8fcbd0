# The two commands are `make run` and `make test`; both need only Python >= 3.11, make and the package registries.
PORT ?= 8000
VAR_DIR ?= $(CURDIR)/var
DEMO ?= 1
SUITE ?= ingest
WORKERS ?= 2
KILLS ?= 500
EVENTS ?= 1000000
ARGS ?=
# Names of mutants: what is pure in integration. Of one module every fifth: MUTANTS="integration.bars.*[05]".
MUTANTS ?= integration.market.* integration.slices.x_plan* integration.slices.x_width_for* integration.slices.*uncovered* \
           integration.bars.* integration.bar_kernel.*
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
UV := 0.13.9
LOCKS := requirements.txt requirements-embedded.txt requirements-dev.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-browser coverage lint bench faults mutation lock clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(STAMP) ## Make .venv and node_modules (nothing is installed outside this folder but caches)

# uv installs in seconds what takes pip a minute; where uv cannot run, pip reads the same hashed files.
$(STAMP): $(LOCKS) requirements-demo.txt package-lock.json
	@test -x $(BIN)/python || { echo "setup: virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: Python packages"
	@$(BIN)/python -m pip install -q uv==$(UV) 2>/dev/null || true
	@$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode --require-hashes $(LOCKS:%=-r %) \
	 && $(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode --require-hashes --no-deps -r requirements-demo.txt \
	 || { echo "setup: uv could not, trying pip"; \
	      env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install -q --require-hashes $(LOCKS:%=-r %) \
	   && env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install -q --require-hashes --no-deps -r requirements-demo.txt; }
	@echo "setup: browser libraries; compiled kernels; the broker's jars (once for all clones)"
	@$(BIN)/npm ci --ignore-scripts --no-fund --no-audit --loglevel=error & npm=$$!; \
	 env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m config.kernels & kernels=$$!; \
	 env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m config.embedded.warm && wait $$npm \
	 && { wait $$kernels || echo "setup: kernels not compiled, the first start will do it"; }
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q config integration quality corporate_actions distribution || true
	@touch $@

# `exec`: signals go to the supervisor itself, not to a shell before it.
run: $(STAMP) ## Run everything: servers, demo feed, processing, web page (PORT, VAR_DIR, DEMO)
	@exec env MDI_PORT=$(PORT) MDI_VAR_DIR="$(VAR_DIR)" MDI_DEMO=$(DEMO) $(BIN)/python manage.py run_stack

test: $(STAMP) ## Run the whole test suite; browser tests too where Chromium is installed
	@exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-browser: $(STAMP) ## Run the tests that drive Chromium
	@exec $(BIN)/python -m pytest -m browser $(ARGS)

coverage: $(STAMP) ## Run the suite and show what no test reaches
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile $(ARGS)
	@$(BIN)/coverage combine -q
	@exec $(BIN)/coverage report

lint: $(STAMP) ## Check import floors, style, types, Django and migrations
	@$(BIN)/lint-imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python manage.py check --fail-level WARNING
	@$(BIN)/python manage.py makemigrations --check --dry-run

bench: $(STAMP) ## Measure (SUITE=ingest, ...); the last line is JSON
	@exec $(BIN)/python -m tests.bench $(SUITE)

faults: $(STAMP) ## Explore all schedules of small cases, then kill the processes KILLS times over EVENTS; the last line is JSON
	@exec $(BIN)/python -m tests.faults --kills $(KILLS) --events $(EVENTS) $(ARGS)

# In a copy of the tree: others go on working in this one. mutmut leaves decorated functions alone; uncompiled, `@compiled` does nothing.
mutation: $(STAMP) ## Change the pure modules and see whether a test notices (MUTANTS; docs/mutation.md)
	@rm -rf mutants && mkdir mutants
	@cp -Rp config integration quality corporate_actions distribution tests docs manage.py pyproject.toml mutants/
	@sed -i.before '/^@compiled$$/d' mutants/integration/bar_kernel.py
	@cd mutants && NUMBA_DISABLE_JIT=1 nice $(CURDIR)/$(BIN)/python -m mutmut run --max-children $(WORKERS) $(MUTANTS:%='%')
	@cd mutants && $(CURDIR)/$(BIN)/python -m mutmut results | sed '/: not checked$$/d'

lock: ## Compile the requirements files again (newest versions that fit)
	@for name in "" -embedded -dev -demo; do \
	  nodeps=; [ "$$name" = -demo ] && nodeps=--no-deps; \
	  $(BIN)/uv pip compile -q $$nodeps --universal --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --python-version 3.11 --custom-compile-command "make lock" requirements$$name.in -o requirements$$name.txt || exit 1; \
	done

clean: ## Remove the environment, caches and compiled files; var/ (the data) stays
	@rm -rf $(VENV) node_modules staticfiles .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* htmlcov mutants
	@find . -name __pycache__ -type d -not -path './var/*' -prune -exec rm -rf {} +
