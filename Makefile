# Each target sets up .venv by itself and only wraps a command that works without make (see README.md).
.PHONY: notebooks test test-latest lab refresh book figures results bench clean help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# On Windows a virtual environment keeps its programs in Scripts.
BIN = .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALLED = .venv/installed
LATEST = .venv-latest
LATEST_BIN = $(subst .venv,$(LATEST),$(BIN))

ifdef EFFCNN_DATA_DIR
export EFFCNN_DATA_DIR := $(abspath $(EFFCNN_DATA_DIR))
endif

notebooks: $(INSTALLED)  ## execute the whole series; executed copies go to build/notebooks
	$(BIN)/python -m effcnn_helpers run

test: $(INSTALLED)  ## unit tests and the notebooks' regression tests
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

test-latest: $(LATEST)/installed  ## the same tests beside the newest torch, installed as on Colab
	$(LATEST_BIN)/python -m pytest

lab: $(INSTALLED)  ## open the series in JupyterLab
	$(BIN)/jupyter lab notebooks

refresh: $(INSTALLED)  ## re-execute the committed notebooks in place
	$(BIN)/python -m effcnn_helpers run --in-place

book: $(INSTALLED)  ## the series as HTML pages with a table of contents, in build/book
	$(BIN)/python -m effcnn_helpers book

figures: $(INSTALLED)  ## redraw the paper's figures into figures/
	$(BIN)/python -m effcnn_helpers figures

results: $(INSTALLED)  ## the paper's tables with ours beside them
	$(BIN)/python -m effcnn_helpers results

bench: $(INSTALLED)  ## training throughput against the plain stack, interleaved (minutes; nothing else running)
	$(BIN)/python tests/bench/throughput.py

clean:  ## remove what was built (the recorded runs and .venv stay)
	rm -rf build *.egg-info .pytest_cache .ruff_cache
	find effcnn_helpers tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

# Written last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on -e ".[deploy,dev]"
	@date > $@

# torch first, as Colab has it; then what is missing beside it.
$(LATEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LATEST)
	$(LATEST_BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on torch==2.14.1 torchvision==0.29.1
	$(LATEST_BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -e .
	$(LATEST_BIN)/python -m effcnn_helpers.complete_install deploy dev
	@date > $@
