# Everything a developer does here, through one virtual environment. `make` lists it.

.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
SECURE_RUNTIME ?= gvisor
AGAINST ?= HEAD~1
PIP := $(BIN)/pip install -qq --disable-pip-version-check
PROJECTS := pyproject.toml clients/python/pyproject.toml
export VENV PYTHON

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(VENV)/.installed engine ## Create, inspect, pause, resume, renew, watch and delete a sandbox under gVisor
	@$(BIN)/python -m deploy.dev.demo --secure-runtime '$(SECURE_RUNTIME)'

.PHONY: run
run: $(VENV)/.installed engine ## Start the server in the foreground on a generated configuration
	@exec $(BIN)/python -m deploy.dev.server --secure-runtime '$(SECURE_RUNTIME)'

.PHONY: test
test: $(VENV)/.installed-dev engine ## Run every test; ARGS="-k name" chooses
	@$(BIN)/pytest $(ARGS)

.PHONY: test-docker
test-docker: $(VENV)/.installed-dev engine ## Run the tests that need the Docker engine
	@$(BIN)/pytest -m docker $(ARGS)

.PHONY: bench
bench: $(VENV)/.installed-dev engine ## Measure against the engine's own cost and OpenSandbox's server
	@$(BIN)/python -m bench $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev protos-check ## Check format, style, types, import rules and protos
	@echo "==> ruff" && $(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@echo "==> mypy" && $(BIN)/mypy
	@echo "==> import rules" && $(BIN)/lint-imports --no-logo
	@echo "==> buf lint" && $(BIN)/buf lint

.PHONY: fmt
fmt: $(VENV)/.installed-dev ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

.PHONY: protos
protos: $(VENV)/.installed-dev ## Generate the client's Python code from protos/
	@deploy/dev/protos && echo "==> generated clients/python/opensandboxd/v1"

.PHONY: protos-check
protos-check: $(VENV)/.installed-dev ## Check that the committed code is what protos/ generates
	@deploy/dev/protos-check

.PHONY: protos-breaking
protos-breaking: $(VENV)/.installed-dev ## Check that protos/ breaks no caller of AGAINST (HEAD~1)
	@deploy/dev/protos-breaking '$(AGAINST)'

.PHONY: clean
clean: ## Remove the virtual environment, caches and generated configuration
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: engine
engine:
	@deploy/dev/engine up
	@deploy/dev/engine image

$(VENV)/.installed: $(PROJECTS)
	@deploy/dev/venv
	@echo "==> installing the server and the client into $(VENV)"
	@$(PIP) -e clients/python -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "==> installing the development tools into $(VENV)"
	@$(PIP) -e clients/python -e '.[dev]'
	@touch $@
