# The two commands are `make run` and `make test`; both need only Python >= 3.11, make and the package registries.
PORT ?= 8000
VAR_DIR ?= $(CURDIR)/var
DEMO ?= 1
SUITE ?= ingest
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
UV := 0.13.9
LOCKS := requirements.txt requirements-embedded.txt requirements-dev.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup lock clean

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
	@echo "setup: browser libraries"
	@$(BIN)/npm ci --ignore-scripts --no-fund --no-audit --loglevel=error
	@touch $@

lock: ## Compile the requirements files again (newest versions that fit)
	@for name in "" -embedded -dev -demo; do \
	  nodeps=; [ "$$name" = -demo ] && nodeps=--no-deps; \
	  $(BIN)/uv pip compile -q $$nodeps --universal --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --python-version 3.11 --custom-compile-command "make lock" requirements$$name.in -o requirements$$name.txt || exit 1; \
	done

clean: ## Remove the environment, caches and compiled files; var/ (the data) stays
	@rm -rf $(VENV) node_modules staticfiles .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* htmlcov mutants
	@find . -name __pycache__ -type d -not -path './var/*' -prune -exec rm -rf {} +
