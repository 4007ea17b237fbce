# make quickstart | test | faults | lint | clean          STORAGE=<uri> moves the storage root (default ./runs)
PYTHON  ?= python3
STORAGE ?= $(CURDIR)/runs
VENV    := .venv
PY      := $(VENV)/bin/python
READY   := $(VENV)/.ready

.PHONY: help quickstart test faults lint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"got Python {v.major}.{v.minor}, expected 3.11 or newer: make PYTHON=python3.11 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned packages into $(VENV) (about 2 GB, once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(READY)
	@$(PY) jobs/prepare_data.py --config jobs/configs/prepare_digits.yaml --set 'storage=$(STORAGE)'
	@$(PY) jobs/pretrain.py --config jobs/configs/pretrain_digits.yaml --set 'storage=$(STORAGE)'
	@$(PY) jobs/unlearn_imagenet.py --config jobs/configs/quickstart.yaml --set 'storage=$(STORAGE)'
	@$(PY) jobs/generate.py --config jobs/configs/generate_digits.yaml --set 'storage=$(STORAGE)'

test: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not faults' -n 2 --dist loadfile --no-loadscope-reorder

faults: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m faults

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
