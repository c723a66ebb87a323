# Two commands: `make demo` and `make test`. Both set up the environment on first use.
#   STACK=onedl      maintained forks of the OpenMMLab packages, current torch (default)
#   STACK=openmmlab  OpenMMLab's own packages, torch 2.1 (needs Python 3.10 or 3.11)
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
STACK ?= onedl
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))
JOBS ?= 2
comma := ,
# Where it is set, each process compiles all that it imports again: 3,000 modules, several seconds.
unexport PYTHONDONTWRITEBYTECODE

# torch and torchvision come together, from one index: wheels of different ones do not fit.
TORCH_onedl := torch==2.14.1 torchvision==0.29.1
TORCH_openmmlab := torch==2.1.2 torchvision==0.16.2
TORCH_none := $(TORCH_onedl)
TORCH ?= $(TORCH_$(STACK))

# Libraries of the tests that do not work with torch 2.1: see pyproject.toml.
INTEROP := $(if $(filter onedl,$(STACK)),$(comma)interop)

BIN := $(VENV)/bin
# The type hints of torch 2.1 differ from those of current torch: types are checked on one stack.
MYPY := $(if $(filter onedl,$(STACK)),$(BIN)/mypy)
# The package is installed editable: an environment shared by several clones is pointed at the
# one that is used.
INSTALLED := $(VENV)/installed$(subst /,-,$(CURDIR))

# $(call CHECK,STACKS): an error for another stack, or for a Python that the stack cannot use.
define CHECK
@test -n '$(filter $(1),$(STACK))' || { echo 'error: STACK=$(STACK): choose one of: $(1)'; exit 2; }
@$(PYTHON) -c 'import sys; stack = "$(STACK)"; v = sys.version_info[:2]; \
  bad = v < (3, 10) or (stack == "openmmlab" and v > (3, 11)); \
  sys.exit(f"error: STACK={stack} cannot use Python {v[0]}.{v[1]}; set PYTHON=python3.11" if bad else 0)'
endef

DEMO := configs/demo/retinanet_linglo_b0_fpn_shapes.py
DEMO_DIR ?= work_dirs/demo
DEMO_OPTIONS ?=
# Each time into a folder of its own, as MMEngine's logs: nothing is written over.
RESULTS := $(DEMO_DIR)/results/$(shell date +%Y%m%d_%H%M%S)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
# A run of its own: Triton decides at import whether its interpreter runs the kernels.
TRITON_TESTS := TRITON_INTERPRET=1 $(PYTEST) --dist load tests/test_ops/test_triton_kernels.py

.PHONY: help install smoke demo test test-slow campaign gpu lint format docs

help:
	@echo 'make demo   train, evaluate and draw a detector on the embedded data set'
	@echo 'make test   lint, types and the test suite; make test-slow  the long tests'
	@echo 'make campaign  mutated files and killed processes, up to 15 minutes'
	@echo 'make gpu    the kernels on a GPU: correctness and speed, 9 minutes; see docs/speed.md'
	@echo 'make smoke  install into a temporary environment, one training step; also with STACK=none'
	@echo 'make docs   the documentation as HTML, with an API reference, in build/docs'
	@echo 'STACK=onedl|openmmlab  PYTHON=python3  VENV=.venv  DEMO_DIR=work_dirs/demo  DEMO_OPTIONS=--from-scratch'

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py Makefile
	$(call CHECK,onedl openmmlab)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile $(TORCH)
	$(BIN)/python -m pip install --no-compile -e '.[$(STACK),dev$(INTEROP)]'
	@rm -f $(VENV)/installed* && touch $@

# docs/install.md lists what passed. The environment takes up to 7 GB in $TMPDIR and is removed.
smoke:
	$(call CHECK,onedl openmmlab none)
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	  $(PYTHON) -m venv "$$folder"; pip="$$folder/bin/python -m pip install --quiet --no-compile"; \
	  $$pip $(TORCH); $$pip -e '.$(patsubst %,[%],$(filter-out none,$(STACK)))'; \
	  "$$folder/bin/python" -I tests/smoke.py

demo: $(INSTALLED)
	$(BIN)/python tools/prepare_data.py shapes
	$(BIN)/python tools/train.py $(DEMO) --work-dir $(DEMO_DIR) --resume $(DEMO_OPTIONS)
	@mkdir -p $(RESULTS)
	$(BIN)/python tools/test.py $(DEMO) "$$(cat $(DEMO_DIR)/last_checkpoint)" \
	  --work-dir $(DEMO_DIR)/test --show-dir $(RESULTS)/pictures | tee $(RESULTS)/test.txt
	@echo
	@grep '^ Average' $(RESULTS)/test.txt
	@echo "pictures    $(RESULTS)/pictures/overview.png and others: true boxes left, predicted right"
	@echo "log         $$(ls -t $(DEMO_DIR)/*/*.log | tail -n 1)"
	@echo "checkpoint  $$(cat $(DEMO_DIR)/last_checkpoint)"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(MYPY)

test: lint
	$(PYTEST)
	$(TRITON_TESTS)

test-slow: $(INSTALLED)
	$(PYTEST) -m slow
	$(TRITON_TESTS) -m slow

FUZZ := OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/fuzz.py
campaign: $(INSTALLED)
	timeout 900 bash -c '$(FUZZ) --count 2000 torch_zip torch_legacy flax safetensors && \
	  $(FUZZ) --count 1000 coco pictures && $(BIN)/python tests/campaigns/kill_ranks.py --kills 10'

# On the machine with the GPU, with the Python at hand: PyTorch 2.11, Triton and timm suffice.
gpu:
	PYTHONPATH=$(CURDIR) $(PYTHON) tools/analysis_tools/gpu_report.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo 'documentation  build/docs/index.html'
