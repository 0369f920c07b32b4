# The commands of this project; `make help` lists them. Everything is installed into .venv from the lock files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More arguments for run, test and bench, for example: make test ARGS="-k splits"
ARGS ?=

STARTED := $(shell date +%s)

# An environment names its folder in its scripts and in the link to this package: in a project that was moved, the scripts
# do not start; in a copy, they run the code of the original. One that was made elsewhere is therefore made again.
LINK := $(VENV)/lib/python*/site-packages/_market_data_pipeline.pth
ELSEWHERE := $(shell for link in $(LINK); do \
	test ! -e "$$link" || grep -qxF -- "$$(pwd -P)" "$$link" || echo yes; done)
ifeq ($(ELSEWHERE),yes)
.PHONY: $(BIN)/python
endif

# uv trusts its own list of authorities unless told to use the machine's, as pip does.
export UV_SYSTEM_CERTS := 1
export UV_CUSTOM_COMPILE_COMMAND := make lock
# The caller's environment, if one is active, is not the one that is meant here.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help install run test lint format bench lock down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.installed $(if $(filter-out 0 no false,$(CLUSTER)),$(VENV)/.installed-cluster) ## install the locked environment into .venv; CLUSTER=1 adds what several hosts need

run: $(VENV)/.installed ## start everything and load the universe; ONCE=1 exits when the backfill is done
ifeq ($(filter-out 0 no false,$(ONCE)),)
	@exec $(BIN)/market-data up --from-make $(ARGS) # not below a shell: what ends make ends it too
else
	@$(BIN)/market-data up --once $(ARGS)
	@echo "In all, installation included: $$(($$(date +%s) - $(STARTED))) s."
endif

down: $(VENV)/.installed ## stop everything that `make run` left running
	@$(BIN)/market-data down

# A third of a test's time is spent waiting, for processes above all, so four workers keep two processors busy. What is
# compiled is kept: each worker compiles 4 s, and each of hundreds of processes 0.2 s, where it is not.
test: $(VENV)/.installed-dev $(VENV)/.browser ## run the whole test suite
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# Tests of the pages drive a browser. It is installed once, where none is there and apt may; elsewhere pytest says why
# those tests are skipped.
$(VENV)/.browser: | $(VENV)/.installed-dev
	@for name in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable; do \
		! command -v $$name >/dev/null || browser=$$name; done; \
	if [ -z "$$browser" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the tests of the pages ..." >&2; export DEBIAN_FRONTEND=noninteractive; \
		{ $(APT) update && { $(APT) install -y --no-install-recommends chromium-headless-shell fonts-dejavu-core \
			|| $(APT) install -y --no-install-recommends chromium fonts-dejavu-core; }; } >/dev/null 2>&1 \
		|| echo "Chromium could not be installed; the tests of the pages are skipped." >&2; fi; touch $@

# A machine without a network finds that out in seconds.
APT := timeout 300 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15

lint: $(VENV)/.installed-dev ## check format, lint, types, imports and SQL
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint --disable-progress-bar sql

format: $(VENV)/.installed-dev ## format the code and the SQL, and fix what can be fixed safely
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix --disable-progress-bar sql

bench: $(VENV)/.installed ## measure the pipeline on this machine
	@$(BIN)/python -m benchmarks $(ARGS)

lock: $(VENV)/.installed ## pin the newest versions that pyproject.toml allows, and see where they have wheels
	$(COMPILE) --group installer --output-file requirements-installer.lock
	$(COMPILE) pyproject.toml --extra all --group build --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra all --extra kubernetes --group build --constraints requirements.lock \
		--output-file requirements-kubernetes.lock
	$(COMPILE) pyproject.toml --extra all --extra cluster --group build --constraints requirements-kubernetes.lock \
		--output-file requirements-cluster.lock
	$(COMPILE) pyproject.toml --extra all --extra kubernetes --extra cluster --group build --group dev \
		--constraints requirements-cluster.lock --constraints requirements-kubernetes.lock \
		--output-file requirements-dev.lock
	$(BIN)/python -m market_data_pipeline_tests.lock_platforms

clean: ## remove the environment and caches; data in .market-data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find market_data_pipeline market_data_pipeline_tests -name __pycache__ -type d -prune -exec rm -rf {} +

COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-emit-index-url --no-emit-find-links

# Shell functions shared by the two installing recipes.
# - The dagster and dg commands of this environment are wrappers around those that Dagster's packages install. They are no
#   scripts of ours in pyproject.toml because they would then replace Dagster's own wherever this package is installed.
# - A machine whose pip is told where packages come from (a mirror) is served by pip: uv does not read pip's settings.
# - Debian's python3 can make environments only without pip unless python3-venv is installed; the system's pip fills them.
# - compileall names its files itself because PYTHONDONTWRITEBYTECODE, where set, also stops the installers; some
#   packages carry templates that are not Python, so its exit code says nothing.
define SETUP
say() { echo "$$*" >&2; }; \
pip_install() { $(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check install --quiet --no-compile \
	--no-deps --progress-bar off "$$@"; }; \
has_uv() { test -x $(BIN)/uv; }; \
install() { \
	if has_uv; then $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps "$$@" && return; \
		say "uv could not install; trying pip."; fi; \
	pip_install "$$@"; }; \
compile() { $(BIN)/python -m compileall -qq -j0 -x '/(tests?|testing)/' $(VENV)/lib market_data_pipeline; true; }; \
wrap_dagster() { for name in dagster dg; do test -e $(BIN)/$$name || continue; \
	printf '%s\n' '#!/bin/sh' '# Written by make install: see market_data_pipeline/cli/dagster.py.' \
	'bin=$$(dirname "$$(readlink -f "$$0")")' \
	"exec \"\$$bin/python\" -P -c \"from market_data_pipeline.cli.dagster import main; main('$$name')\" \"\$$@\"" \
	>$(BIN)/$$name.new; chmod +x $(BIN)/$$name.new; mv -f $(BIN)/$$name.new $(BIN)/$$name; done; }
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -c 'import pip' 2>/dev/null || \
		{ echo "$(PYTHON) has no pip; install it (Debian, Ubuntu: apt install python3-pip)." >&2; exit 1; }
	@test -z "$(ELSEWHERE)" || { echo "The environment in $(VENV) was made in another folder; making it again ..." >&2; \
		rm -rf $(VENV); }
	@$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/.installed: $(BIN)/python requirements-installer.lock requirements.lock pyproject.toml
	@$(SETUP); set -e; say "Installing the locked requirements into $(VENV) ..."; \
	if $(PYTHON) -m pip config list | grep -qE "\.(index-url|no-index)="; then rm -f $(BIN)/uv; \
	else pip_install --require-hashes -r requirements-installer.lock || say "uv is not to be had; using pip."; fi; \
	install --require-hashes -r requirements.lock; \
	install --no-build-isolation --editable .; \
	wrap_dagster; compile; touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed requirements-cluster.lock
	@$(SETUP); set -e; say "Installing what workers of several hosts need ..."; \
	install --require-hashes -r requirements-cluster.lock; \
	wrap_dagster; compile; touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@$(SETUP); set -e; say "Installing what tests and lint need ..."; \
	install --require-hashes -r requirements-dev.lock; \
	wrap_dagster; compile; touch $@
