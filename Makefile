# Each target does its whole set-up on a fresh machine (Linux x86_64, make, Python 3.11, 3.12 or 3.13). A second run
# starts at once.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

# Quiet and offline: no usage statistics, no look-ups of models.
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export LMCACHE_TRACK_USAGE := false
export LMCACHE_DISABLE_BANNER := 1
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
# A vLLM server is three processes that import 5,000 modules each. Without bytecode every start compiles all of them.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
# PLATFORM=cpu or PLATFORM=cuda overrides what is found.
PLATFORM ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := requirements/$(PLATFORM).txt
# Keyed by content and place: another lock or a moved checkout is another environment (scripts in it name their folder).
PACKAGES := .venv/.packages-$(shell { pwd; cat $(LOCK); } | sha256sum | cut -c1-16)
PROJECT := .venv/.project-$(shell sha256sum pyproject.toml | cut -c1-16)
# Test workers, each of which may run vLLM servers of the small model. Tests often wait, for a disk or for each other, so
# that three of them keep two cores busy. A fourth one saves two minutes, and makes the servers miss their time limits.
WORKERS ?= 3

.PHONY: help setup model demo test check certify torture bench wheel docs lock clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile

setup: $(PROJECT) ## Make .venv: the locked packages (CUDA with an NVIDIA GPU, else CPU) and this project
	@tools/redis.sh
	@tools/chromium.sh

$(PACKAGES):
	@tools/setup.sh $(LOCK) $@

$(PROJECT): $(PACKAGES)
	@$(PY) -m pip --disable-pip-version-check --quiet install --no-build-isolation --no-deps --editable .
	@touch $@

model: setup ## Build the small real model (SmolLM2-135M-Instruct) and print its path
	@$(PY) tools/model.py

demo: setup model ## Freeze, kill, thaw and branch a real conversation in a real vLLM (ARGS=--keep: leave it running)
	@$(PY) -m demo $(ARGS)

check: setup ## Style, types and layers: ruff, mypy, the test of the imports
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pytest --quiet tests/test_layers.py tests/test_shape.py

test: setup model check ## Style, types and every test that can run here
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --durations=25

certify: setup model ## Compare 104 thawed windows of a real vLLM with prefix hits, bit for bit (20 minutes at most)
	@$(PY) -m tests.certify

torture: setup model ## Kill -9 and power cuts, 1,000 loops over stores, 20 over a real vLLM (an hour), a soak (an hour)
	@$(PY) -m tests.torture --loops 1080 --engine-loops 20 --minutes 60 --soak-minutes 60

bench: setup model ## Measure: time to first token, llama.cpp beside it, copies, tiers, Redis, catalog, hooks, lists (30 minutes)
	@for part in ttft llama_cpp paging tiers redis catalog hooks facade; do $(PY) -m benchmarks.$$part || exit 1; done

# setuptools packs what an earlier build left in build/lib, also modules that are gone since.
wheel: setup ## Build dist/context_window_manager-….whl, to install elsewhere
	@rm -rf build/lib build/bdist.* dist
	@$(PY) -m pip --disable-pip-version-check --quiet wheel --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

docs: ## Build the documentation's site in build/site (mkdocs-material, in an environment of its own)
	@tools/docs.sh
	@echo build/site/index.html

lock: ## Resolve both locks to the newest versions that fit (needs uv)
	@tools/lock.sh

clean: ## Remove .venv, build/, dist/ and caches
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
