# packvit: set-up, demo, tests and checks. Needs Python 3.11+ with venv, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := runs/digits-data
RUN := runs/digits

.PHONY: help demo test check bench clean

help:
	@echo "make demo   train on the demo set, evaluate at every budget, draw (minutes, no GPU needed)"
	@echo "make test   all tests"
	@echo "make check  lint, format and types"
	@echo "make bench  packers, data path and model against others; writes benchmarks/results and docs"
	@echo "make clean  remove .venv and the demo's run"

# The extras of a stamp are installed when it is older than what pip reads.
$(VENV)/demo.stamp $(VENV)/dev.stamp: $(VENV)/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# classes.json is written last and marks a complete set.
$(DATA)/val/classes.json: $(VENV)/demo.stamp
	rm -rf $(DATA)
	$(BIN)/packvit shards demo $(DATA)

demo: $(VENV)/demo.stamp $(DATA)/val/classes.json
	$(BIN)/packvit train digits --run-dir $(RUN) --data.shards $(DATA)/train --data.val-shards $(DATA)/val

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/model.py
	$(BIN)/python benchmarks/attention.py

clean:
	rm -rf $(VENV) $(DATA) $(RUN)
