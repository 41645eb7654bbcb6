# make demo: the main job on a synthetic head. make test: style and tests. Both set up what they need, once.
PYTHON ?= python3
# Named in full, so that all machines test the same; a CPU build serves.
TORCH ?= torch==2.13.0
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test clean

demo: $(READY)
	$(VENV)/bin/python -m ASFEFusionLib demo --output demo

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -q

$(READY): pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=...") if sys.version_info < (3, 10) else 0'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q "$(TORCH)"
	$(VENV)/bin/python -m pip install -q -e ".[test,train,evaluate]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo build *.egg-info
