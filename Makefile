# Each target sets up what it needs on a machine with Python 3.11 or newer.
PYTHON ?= python3
RUN = .venv/bin/python

train: .venv/installed           # the quick start: a minute of training on two CPU cores
	$(RUN) train.py --mesh 8x1

test: .venv/installed-dev        # hermetic tests without those marked slow
	$(RUN) -m pytest tests -n 2 --dist worksteal -m "not slow"

test-all: .venv/installed-dev    # every hermetic test
	$(RUN) -m pytest tests -n 2 --dist worksteal

lint: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements-serve.txt requirements-study.txt .venv/installed
	$(RUN) -m pip install -q -r requirements-dev.txt
	touch $@

.PHONY: train test test-all lint
