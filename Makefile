# Each target sets up .venv by itself and only wraps a command that works without make (see README.md).
.PHONY: notebooks test soak test-latest lab refresh book figures results bench lock clean help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# On Windows a virtual environment keeps its programs in Scripts.
BIN = .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALLED = .venv/installed
INSTALLED_ALL = .venv/installed-all
LATEST = .venv-latest
LATEST_BIN = $(subst .venv,$(LATEST),$(BIN))
# One more than the two cores: a test that waits for another process leaves a core idle.
SIDE_BY_SIDE = -n 3
PIP_INSTALL = -m pip install --disable-pip-version-check --quiet --progress-bar on

# A notebook runs in its own folder, so a relative path is made absolute here, blanks and all.
ifneq (,$(EFFCNN_DATA_DIR))
ifeq (,$(filter /% ~%,$(firstword $(EFFCNN_DATA_DIR)))$(findstring :,$(EFFCNN_DATA_DIR)))
override EFFCNN_DATA_DIR := $(CURDIR)/$(EFFCNN_DATA_DIR)
endif
export EFFCNN_DATA_DIR
endif

notebooks: $(INSTALLED)  ## execute the whole series; executed copies go to build/notebooks
	$(BIN)/python -m effcnn_helpers run

test: $(INSTALLED_ALL)  ## unit tests and the notebooks' regression tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --cov --durations=40 $(SIDE_BY_SIDE)

soak: $(INSTALLED_ALL)  ## faults and wrong values, tried many times over (an hour or more; nothing else running)
	TESTS_SOAK=1 $(BIN)/python -m pytest -s tests/test_faults.py tests/test_properties.py \
		tests/test_sweep.py tests/test_supply_chain.py

test-latest: $(LATEST)/installed  ## the same tests beside the newest torch, installed as on Colab
	$(LATEST_BIN)/python -m pytest $(SIDE_BY_SIDE)

lab: $(INSTALLED)  ## open the series in JupyterLab
	$(BIN)/jupyter lab notebooks

refresh: $(INSTALLED)  ## re-execute the committed notebooks in place
	$(BIN)/python -m effcnn_helpers run --in-place

book: $(INSTALLED_ALL)  ## the series as HTML pages with a table of contents, in build/book
	$(BIN)/python -m effcnn_helpers book

figures: $(INSTALLED)  ## redraw the paper's figures into figures/
	$(BIN)/python -m effcnn_helpers figures

results: $(INSTALLED)  ## the paper's tables with ours beside them
	$(BIN)/python -m effcnn_helpers results

bench: $(INSTALLED)  ## training throughput against the plain stack, interleaved (minutes; nothing else running)
	$(BIN)/python tests/bench/throughput.py

# Versions that still fit stay as they are; `rm requirements*.lock` first for the newest of all.
UV_COMPILE = echo 'setuptools>=77' | build/uv/$(notdir $(BIN))/uv pip compile pyproject.toml - \
	--universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet
# Without the marker that nearly all lines share.
SHORTENED = sed 's/ ; python_full_version < .3.14. and sys_platform != .emscripten. \\$$/ \\/'

lock:  ## write the lock files anew from pyproject.toml
	$(PYTHON) -m venv build/uv
	build/uv/$(notdir $(BIN))/python $(PIP_INSTALL) uv
	cat requirements*.lock 2>/dev/null | grep -v '^-r' > build/all.lock || true
	$(UV_COMPILE) --extra deploy --extra lab --extra test --extra book --extra cluster --output-file build/all.lock > build/uv.log
	cp build/all.lock build/run.lock
	$(UV_COMPILE) --extra deploy --extra lab --output-file build/run.lock > build/uv.log
	$(SHORTENED) build/run.lock > requirements.lock
	echo '-r requirements.lock' > requirements-all.lock
	awk 'NR == FNR {run[$$1]; next} /^[^ ]/ {more = !($$1 in run)} more' \
		build/run.lock build/all.lock | $(SHORTENED) >> requirements-all.lock

clean:  ## remove what was built (the recorded runs and .venv stay)
	rm -rf build *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find effcnn_helpers tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

# $(1): what to install. The date is written last: an interrupted installation is taken up again.
define install
@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it:" \
	"make PYTHON=/path/to/python3.12"; exit 1; }
$(PYTHON) -m venv .venv
$(BIN)/python $(PIP_INSTALL) --require-hashes -r $(1)
$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation -e .
@date > $@
endef

$(INSTALLED): pyproject.toml requirements.lock
	$(call install,requirements.lock)

$(INSTALLED_ALL): pyproject.toml requirements.lock requirements-all.lock
	$(call install,requirements-all.lock)

# torch first, as Colab has it; then what is missing beside it.
$(LATEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LATEST)
	$(LATEST_BIN)/python $(PIP_INSTALL) torch==2.14.1 torchvision==0.29.1
	$(LATEST_BIN)/python $(PIP_INSTALL) --no-deps -e .
	$(LATEST_BIN)/python -m effcnn_helpers.complete_install deploy lab test book cluster
	@date > $@
