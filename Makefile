# packvit: set-up, demo, tests and checks. Needs Python 3.11+ with venv, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := runs/digits-data
RUN := runs/digits
# What runs packvit on a GPU, and what has the CUDA build of torch where there is none. Without these, make
# installs both; what is given is used as it is, packvit itself comes from this checkout.
PYTHON_GPU ?= $(BIN)/python
DRY := .venv-dry
PYTHON_DRY ?= $(DRY)/bin/python
GPU_FLAGS ?=
BROWSER ?=
DRY_FLAGS ?=
SCRIPTS := PYTHONPATH=benchmarks:typings
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: help demo test test-slow check docs bench gpu gpu-dry screenshot clean

help:
	@echo "make demo   train on the demo set, evaluate at every budget, draw (minutes, no GPU needed)"
	@echo "make test   all tests but the slow ones, minutes"
	@echo "make test-slow  the slow ones: kills, three ranks, every kind of graph and compiled model"
	@echo "make check  lint, format and types"
	@echo "make docs   the documentation as a site in build/site; a broken link is an error"
	@echo "make bench  packers, data path, loaders and model against others; writes benchmarks/results and docs"
	@echo "make gpu    everything that is measured on a GPU, ten minutes; writes benchmarks/results and docs/gpu.md"
	@echo "make gpu-dry  what a GPU would do, counted without one, two minutes; likewise"
	@echo "make screenshot  docs/images/report.png, of the demo's report; needs Chromium (BROWSER=its path)"
	@echo "make clean  remove .venv, .venv-dry, the demo's run and the site"

# The extras of a stamp are installed when it is older than what pip reads.
$(VENV)/demo.stamp $(VENV)/dev.stamp $(VENV)/docs.stamp $(VENV)/peers.stamp: $(VENV)/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# classes.json is written last and marks a complete set.
$(DATA)/val/classes.json: $(VENV)/demo.stamp
	rm -rf $(DATA)
	$(BIN)/packvit shards demo $(DATA)

demo: $(VENV)/demo.stamp $(DATA)/val/classes.json
	$(BIN)/packvit train digits --run-dir $(RUN) --data.shards $(DATA)/train --data.val-shards $(DATA)/val
	$(BIN)/packvit plan $(RUN)/eval --max-tokens 40 --out $(RUN)/eval/plan.json

test: $(VENV)/dev.stamp
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/dev.stamp
	$(PYTEST) -m slow

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/dev.stamp $(VENV)/peers.stamp
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/data.py
	$(SCRIPTS) $(BIN)/python benchmarks/loaders.py
	$(BIN)/python benchmarks/model.py
	$(BIN)/python benchmarks/attention.py

# From PyPI itself: other indices may offer a build without CUDA first.
$(DRY)/dry.stamp: pyproject.toml constraints.txt
	test -x $(DRY)/bin/python || $(PYTHON) -m venv $(DRY)
	env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null $(DRY)/bin/python -m pip install -q \
		--disable-pip-version-check -c constraints.txt torch
	$(DRY)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

# Set as an environment or make variable, a Python needs no set-up.
gpu: $(if $(filter file,$(origin PYTHON_GPU)),$(VENV)/dev.stamp)
	$(SCRIPTS) $(PYTHON_GPU) -P -m gpu $(GPU_FLAGS)

gpu-dry: $(if $(filter file,$(origin PYTHON_DRY)),$(DRY)/dry.stamp)
	$(SCRIPTS) $(PYTHON_DRY) -P -m dry $(DRY_FLAGS)

screenshot:
	$(BIN)/python benchmarks/screenshot.py $(RUN)/eval/report.html --browser "$(BROWSER)"

clean:
	rm -rf $(VENV) $(DRY) $(DATA) $(RUN) build/site
