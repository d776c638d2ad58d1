# People, CI and hooks call the same targets. Python 3.11 or newer, git and make are all it needs.
.PHONY: help test check demo model clean
.DEFAULT_GOAL := help

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python $(NEW_ENOUGH) 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/installed
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

test: $(STAMP)  ## the tests, with branch coverage; two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not triton" \
		--cov --cov-branch --cov-fail-under=90

check: $(STAMP)  ## style, types and the arrows between the packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(PICTURES)/metadata.jsonl: | $(STAMP)
	$(BIN)/python examples/shapes/draw_pictures.py --out $(PICTURES)

$(PICTURES)-long/metadata.jsonl: | $(STAMP)
	$(BIN)/python examples/shapes/draw_pictures.py --per-caption 36 --pairs 600 --out $(PICTURES)-long

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
	rm -rf .venv build dist *.egg-info .coverage .hypothesis .*_cache
	find distill export serve tests examples -name __pycache__ -prune -exec rm -rf {} +
