# `make train` and `make test` do all the set-up a fresh machine needs (Python 3.11 or newer); the plain commands are in the README.
PYTHON ?= python3

train: .venv/installed
	.venv/bin/python train.py --mesh 8x1

test: .venv/installed-dev
	.venv/bin/python -m pytest tests

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	.venv/bin/python -m pip install -q -r requirements-dev.txt
	touch $@

.PHONY: train test
