# make quickstart | test | faults | lint | lock | clean          STORAGE=<uri> moves the storage root (default ./runs)
PYTHON  ?= python3
STORAGE ?= $(CURDIR)/runs
VENV    := .venv
PY      := $(VENV)/bin/python
READY   := $(VENV)/.ready

# made of torch's own requirements: it comes from the index of its build, which has other files (docs/operations.md)
OF_TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 \
            cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
PIP     := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: help quickstart test faults lint lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

$(READY): pyproject.toml constraints.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"got Python {v.major}.{v.minor}, expected 3.11 or newer: make PYTHON=python3.11 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned packages into $(VENV) (about 2 GB, once)"
	@$(PIP) --require-hashes --no-deps -r requirements/dev.txt
	@$(PIP) -c constraints.txt torch
	@$(PIP) --no-deps --no-build-isolation -e .
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

# the hashes of every published file of what constraints.txt pins; wants uv (pip install uv==0.13.9)
lock:
	@for pair in dev:dev runtime:diffusers; do \
	    uv pip compile pyproject.toml --extra $${pair#*:} -c constraints.txt --generate-hashes --universal --python-version 3.11 \
	        --no-annotate --quiet --custom-compile-command 'make lock' $(addprefix --no-emit-package ,$(OF_TORCH)) -o requirements/$${pair%:*}.txt; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
