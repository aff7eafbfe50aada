# Everything runs in .venv at the repository root; a target sets it up when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch 2.13 has no matching torchvision on every platform, and mmcv does not build beside torch >= 2.14.
TORCH := 'torch<2.13'

# Threads that wait should sleep: on a busy machine spinning ones make training steps several times slower.
export OMP_WAIT_POLICY ?= PASSIVE

# A process per core, each with the tests of whole files, for those share what is slow to make.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-min test-timm audit dist lint format docs tables

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: newer than pyproject.toml means up to date.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) -e '.[$*]'
	touch $@

# mmcv has no wheel for every Python, and an installation without a compiler or torch leaves its ops out silently. So it
# is built here, once (10 minutes on two cores); pip keeps the wheel in its cache. Its build needs pkg_resources, which
# setuptools 82 has no longer, and setuptools 77 for its licence field.
$(VENV)/.installed-mmcv: Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) 'setuptools>=77,<81' wheel ninja
	MMCV_WITH_OPS=1 FORCE_CUDA=0 $(BIN)/python -m pip install --quiet --no-build-isolation 'onedl-mmcv>=2.3.6'
	$(BIN)/python -c "import mmcv.ops"
	touch $@

$(VENV)/.installed-test $(VENV)/.installed-dev: $(VENV)/.installed-mmcv

demo: $(VENV)/.installed-demo  ## fine-tune mobilevitv3_xxs on real digit scans, evaluate, reload, predict
	$(BIN)/python -m benchmarks.digits

test: $(VENV)/.installed-test  ## run the whole suite, but for what is marked long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" $(PARALLEL) --cov --cov-report=term:skip-covered --cov-fail-under=95

test-long: $(VENV)/.installed-test  ## run what is marked long
	$(BIN)/python -m pytest -m long

test-min:  ## run the core tests with the oldest versions allowed
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/python -m pip install --quiet -r tests/floors.txt
	.venv-min/bin/python -m pip install --quiet --no-build-isolation -c tests/floors.txt -e .
	.venv-min/bin/python -m pytest -m "not long" --ignore-glob='tests/*mm*' --ignore=timm_mobilevit/mm \
	    --ignore=timm_mobilevit/export/mm.py --ignore=timm_mobilevit/export/onnx.py \
	    --ignore=timm_mobilevit/export/quantize.py -k "not export_with_dynamic"

audit: $(VENV)/.installed-dev  ## look for known vulnerabilities in what is installed
	$(BIN)/pip-audit --skip-editable

dist: $(VENV)/.installed-release  ## build what is uploaded; the same commit gives the same wheel
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

test-timm: $(VENV)/.installed-test  ## run timm's own model tests over our models
	$(BIN)/python tests/timm_suite.py

lint: $(VENV)/.installed-lint  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation site into build/docs, without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

tables: $(VENV)/.installed-test  ## write the figures and tables of the documents again
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.make_tables
