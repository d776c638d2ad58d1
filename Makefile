# People, CI and hooks call the same targets. Python 3.11 or newer, git and make are all it needs.
.PHONY: help test triton bindings options check demo model clean
.DEFAULT_GOAL := help

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python $(NEW_ENOUGH) 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/installed
TRITON := .venv-triton
PICTURES := runs/shapes-pictures
REBUILT := $(CURDIR)/runs/rebuilt

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) $(NEW_ENOUGH) || { \
		echo "PYTHON is '$(PYTHON)'; Python 3.11 or newer is needed, as in: make PYTHON=python3.11"; \
		exit 1; } >&2
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[distill,export,dev]"
	@touch $@

# A Triton server for the tests, in an environment of its own: it needs numpy 1, and the Python stub of this
# very Python beside its back end (150 MB). Without it (no network, another system) those tests are skipped and say why.
triton: $(TRITON)/installed

$(TRITON)/installed: constraints.txt | $(STAMP)
	$(BIN)/python -m venv $(TRITON)
	$(TRITON)/bin/pip install --disable-pip-version-check --quiet --only-binary :all: \
		"numpy<2" "$$(grep ^onnxruntime== constraints.txt)"
	$(TRITON)/bin/pip install --disable-pip-version-check --quiet --only-binary :all: --no-deps nvidia-pytriton==0.7.0
	$(TRITON)/bin/python -c 'import shutil, sys, sysconfig; \
		server = sysconfig.get_path("platlib") + "/pytriton/tritonserver"; \
		stub = "%d.%d/triton_python_backend_stub" % sys.version_info[:2]; \
		shutil.copy2(server + "/python_backend_stubs/" + stub, server + "/backends/python/")'
	@touch $@

# TensorRT's Python bindings without TensorRT, 1 MB each: the tests hold every name the code uses against them.
BINDINGS := 10.8/tensorrt-cu12-bindings==10.8.0.43 10.16/tensorrt-cu12-bindings==10.16.1.11 \
	11.4/tensorrt-cu13-bindings==11.4.0.106

bindings: $(BINDINGS:%=.venv/tensorrt/%)

.venv/tensorrt/%: | $(STAMP)
	$(BIN)/pip install --disable-pip-version-check --quiet --only-binary :all: --no-deps \
		--target $(@D) $(@F)
	@touch $@

# The libraries of two options of a recipe, the 8-bit optimiser and W&B, each tested for real (250 MB). They lie
# apart: in .venv diffusers would import them with every command. What else they need is in .venv.
OPTIONS := bitsandbytes==0.50.2 wandb==0.31.0 platformdirs==4.14.9

options: .venv/options/installed

.venv/options/installed: | $(STAMP)
	$(BIN)/pip install --disable-pip-version-check --quiet --only-binary :all: --no-deps \
		--target $(@D) $(OPTIONS)
	@touch $@

test: $(STAMP)  ## the tests, with branch coverage; two processes of one thread each
	@$(MAKE) --no-print-directory triton || echo "no Triton server here: its tests are skipped" >&2
	@$(MAKE) --no-print-directory --keep-going bindings || \
		echo "no TensorRT bindings here: what they offer is read from tests/export/bindings" >&2
	@$(MAKE) --no-print-directory options || \
		echo "no bitsandbytes or W&B here: the tests that need them are skipped" >&2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" \
		--cov --cov-branch --cov-fail-under=90

check: $(STAMP)  ## style, types and the arrows between the packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(PICTURES)/metadata.jsonl: | $(STAMP)
	$(BIN)/python examples/shapes/draw_pictures.py --out $(PICTURES)

$(PICTURES)-long/metadata.jsonl: | $(STAMP)
	$(BIN)/python examples/shapes/draw_pictures.py --per-caption 36 --pairs 1200 --out $(PICTURES)-long

demo: $(STAMP) $(PICTURES)/metadata.jsonl  ## distil the shapes example and serve it on port 8000 (SERVE=0: do not serve)
	$(BIN)/distill run examples/shapes/recipe.yaml
ifneq ($(SERVE),0)
	$(BIN)/distill serve --model shapes --port 8000
endif

model: $(STAMP) $(PICTURES)-long/metadata.jsonl  ## rebuild model_repository/shapes/1 by the long recipe (up to 90 minutes)
	rm -rf $(REBUILT)
	$(BIN)/distill run examples/shapes/recipe-long.yaml --set export.repository=$(REBUILT)
	rm -rf model_repository/shapes/1
	mkdir -p model_repository/shapes
	cp -R $(REBUILT)/shapes/1 $(REBUILT)/shapes/config.pbtxt model_repository/shapes/

clean:  ## remove what make made, but not runs/
	rm -rf .venv $(TRITON) .venv-peers build dist *.egg-info .coverage .hypothesis .*_cache
	find distill export serve tests examples -name __pycache__ -prune -exec rm -rf {} +
