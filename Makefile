# Everything runs in .venv at the repository root; a target sets it up when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The newest that is tested, and one before 2.14, beside which OpenMMLab's own releases are.
TORCH := 'torch<2.15' 'torchvision<0.30'
OLDER_TORCH := 'torch<2.13'

# The suite and the demo train while other processes run: there, threads that wait should sleep, because spinning ones
# make a training step several times slower. Benchmarks run with OpenMP's default, which is faster for a single image.
PASSIVE := OMP_WAIT_POLICY=PASSIVE

# The core suite: what needs no extra.
CORE := -m "not long and not browser" --ignore-glob='*/mm*' --ignore-glob='*/test_mm*' \
    --ignore=timm_mobilevit/export/onnx.py --ignore=timm_mobilevit/export/quantize.py \
    --ignore=timm_mobilevit/export/runtimes.py --ignore=timm_mobilevit/export/files.py --ignore=timm_mobilevit/export/web.py

# The part of it to run while working: exports, documents, benchmarks, the wheel and scripts have tests that take longer.
QUICK := $(CORE) --ignore=tests/export --ignore=tests/docs --ignore=tests/test_docs.py --ignore=tests/benchmarks \
    --ignore=tests/test_wheel.py --ignore=tests/test_run.py --ignore-glob='*_mm.py'

# The suite of detection and segmentation.
MM := -m "not long" tests/mm tests/export/test_mm*.py tests/cli/test_mm.py tests/cli/test_predict_mm.py timm_mobilevit/mm

# A process per core, each with the tests of whole files, for those share what is slow to make.
# In the order of their names: the last ones are small, so that the processes end together.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

SUITE := $(PASSIVE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long and not browser" $(PARALLEL)

define MMCV_NOTICE
Building mmcv with its compiled operators, which detection needs: no wheel has them for every Python and PyTorch.
This happens once per PyTorch, takes about 16 minutes of CPU time and prints nothing meanwhile.
If an earlier build is in the cache, it takes seconds.
endef
export MMCV_NOTICE

# mmcv is compiled where torch can be imported (--no-build-isolation), and has no ops elsewhere. pip's cache has one
# place for its wheel, whatever torch it was compiled against, and for one without ops too; so those with ops have caches
# of their own, one per torch, and those without go to none. What is installed already could be of either kind: it goes.
# CFLAGS shorten the build. Arguments: the environment, the requirement, and variables of the build.
define install_mmcv
@echo "$$MMCV_NOTICE"
$(1)/bin/python -m pip uninstall --quiet --yes onedl-mmcv mmcv 2>/dev/null
$(3) CFLAGS="-g0 -O1" MMCV_WITH_OPS=1 FORCE_CUDA=0 PIP_CACHE_DIR="$$($(1)/bin/python -m pip cache dir)/mmcv/torch-$$($(1)/bin/python \
    -c 'import torch; print(torch.__version__)')" $(1)/bin/python -m pip install --quiet --no-build-isolation '$(2)'
$(1)/bin/python -c "import mmcv.ops"
endef

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-core test-long test-min test-newest test-consumers test-export test-seg test-older test-mm-upstream test-docs test-web test-timm audit dist lint format docs gpu tables

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: newer than pyproject.toml means up to date.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) -e '.[$*]'
	touch $@

# mmcv asks for C++17, torch 2.14 needs C++20: of several -std, the last one counts.
$(BIN)/cxx20: | $(BIN)/python
	printf '#!/bin/sh\nexec c++ "$$@" -std=c++20\n' > $@
	chmod +x $@

# Its build needs pkg_resources, which setuptools 82 has no longer, and setuptools 77 for its licence field.
$(VENV)/.installed-mmcv: Makefile $(BIN)/cxx20 | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) 'setuptools>=77,<81' wheel ninja
	$(call install_mmcv,$(VENV),onedl-mmcv>=2.3.6,CXX="$(CURDIR)/$(BIN)/cxx20")
	touch $@

$(VENV)/.installed-test $(VENV)/.installed-dev: $(VENV)/.installed-mmcv

demo: $(VENV)/.installed-demo  ## fine-tune mobilevitv3_xxs on real digit scans, evaluate, reload, predict
	$(PASSIVE) $(BIN)/python -m benchmarks.digits

test: $(VENV)/.installed-test  ## run the whole suite, but for what is marked long
	$(SUITE)

coverage: $(VENV)/.installed-test  ## run the suite again and count the lines that it runs, which takes much longer
	$(SUITE) --cov --cov-report=term:skip-covered --cov-fail-under=95

test-core: $(VENV)/.installed-test-core  ## run the core in a few minutes while you work: no exports, no OpenMMLab, no documents
	$(PASSIVE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(QUICK) $(PARALLEL)

test-long: $(VENV)/.installed-test  ## run what is marked long
	$(PASSIVE) $(BIN)/python -m pytest -m long

test-min:  ## run the core tests with the oldest versions allowed
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/python -m pip install --quiet -r tests/floors.txt
	.venv-min/bin/python -m pip install --quiet --no-build-isolation -c tests/floors.txt -e .
	$(PASSIVE) .venv-min/bin/python -m pytest $(CORE) -k "not export_with_dynamic"

test-newest:  ## run the core tests with the newest torch
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
	    torch==2.14.1 torchvision==0.29.1 -e '.[test-core]'
	$(PASSIVE) .venv-newest/bin/python -m pytest $(CORE)

test-export:  ## write every format, run the files in their runtimes and compare; the newest torch that ExecuTorch goes with
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1 \
	    -e '.[test-core,onnx,coreml,executorch,openvino,litert,ncnn]' timmx
	$(PASSIVE) OMP_NUM_THREADS=1 .venv-export/bin/python -m pytest tests/export tests/docs/test_phone.py -m "not long" \
	    --ignore-glob='*/test_mm*'

# In its own isolated build, mmcv finds no torch and compiles nothing.
test-seg:  ## run the tests of segmentation with the newest torch and without a compiler, mmseg's own tools among them
	$(PYTHON) -m venv .venv-seg
	.venv-seg/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1
	.venv-seg/bin/python -m pip install --quiet --no-cache-dir 'onedl-mmcv>=2.3.6'
	.venv-seg/bin/python -m pip install --quiet -e '.[test-core,onnx,seg]' 'transformers>=5.17'
	$(PASSIVE) OMP_NUM_THREADS=1 .venv-seg/bin/python -m pytest -m "not long and not detection" tests/mm

test-older:  ## run the tests of detection and segmentation with the torch before those that `make test` installs
	$(PYTHON) -m venv .venv-older
	.venv-older/bin/python -m pip install --quiet $(OLDER_TORCH) 'setuptools>=77,<81' wheel ninja
	$(call install_mmcv,.venv-older,onedl-mmcv>=2.3.6)
	.venv-older/bin/python -m pip install --quiet $(OLDER_TORCH) -e '.[test-core,onnx,coreml,mm]' 'transformers>=5.17' openvino
	$(PASSIVE) OMP_NUM_THREADS=1 .venv-older/bin/python -m pytest $(MM)

# Those of OpenMMLab itself, which the forks that `make test` installs go on from.
test-mm-upstream:  ## run the tests of detection and segmentation with OpenMMLab's own last releases, mmcv built
	$(PYTHON) -m venv .venv-mm-upstream
	.venv-mm-upstream/bin/python -m pip install --quiet $(OLDER_TORCH) 'setuptools>=77,<81' wheel ninja
	$(call install_mmcv,.venv-mm-upstream,mmcv==2.1.0)
	.venv-mm-upstream/bin/python -m pip install --quiet $(OLDER_TORCH) -e '.[test-core,onnx,coreml]' \
	    mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2 ftfy regex 'transformers>=5.17' openvino
	$(PASSIVE) OMP_NUM_THREADS=1 .venv-mm-upstream/bin/python -m pytest $(MM)

test-docs: docs $(VENV)/.installed-test  ## look at every page of the site in Chromium
	$(BIN)/python -m pytest tests/docs -m browser

test-web: $(VENV)/.installed-test $(VENV)/.installed-docs  ## look at the page of `export web` in Chromium, and run transformers.js in Node
	npm install --prefix build/web --no-save --no-audit --no-fund --ignore-scripts \
	    @huggingface/transformers@4.3.1 onnxruntime-web@1.30.0
	$(PASSIVE) $(BIN)/python -m pytest tests/export/test_web_page.py tests/docs/test_digits.py

test-consumers:  ## run tools that take timm's models, newest releases, with ours and timm's; write docs/compatibility.md
	$(PYTHON) -m venv .venv-consumers
	.venv-consumers/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
	    -r tests/consumers/requirements.txt -e .
	$(PASSIVE) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-consumers/bin/python -m pytest tests/consumers --numprocesses auto \
	    --junit-xml build/consumers.xml
	.venv-consumers/bin/python tests/consumers/write_page.py build/consumers.xml docs/compatibility.md

audit: $(VENV)/.installed-dev  ## look for known vulnerabilities in what is installed
	$(BIN)/pip-audit --skip-editable

dist: $(VENV)/.installed-release  ## build what is uploaded; the same commit gives the same wheel
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

test-timm: $(VENV)/.installed-test  ## run timm's own model tests over our models
	$(PASSIVE) $(BIN)/python tests/timm_suite.py

lint: $(VENV)/.installed-lint  ## check style, types and what imports what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-lint  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation site into build/docs, without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

gpu:  ## check and measure everything on a GPU, from the source tree, with the Python that has torch
	$(PYTHON) -m benchmarks.gpu

tables: $(VENV)/.installed-test  ## write the figures and tables of the documents again
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.make_tables
