# make run    set up .venv and run the main job, experiment=scaling (ARGS="..." adds overrides)
# make test   set up .venv and run the whole test suite (ARGS="..." adds pytest options)
# make lint   set up .venv and run ruff and pyright
#
# The environment is made again only when pyproject.toml or constraints.txt changed. uv is used where it is installed.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
ARGS ?=

.PHONY: run test lint env clean

run: $(STAMP)
	$(VENV)/bin/lufjax run experiment=scaling $(ARGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "lufjax needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d; set PYTHON=..." % v)'
ifeq ($(UV),)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
else
	test -x $(VENV)/bin/python || $(UV) venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)
	$(UV) pip install --quiet --python $(VENV)/bin/python --constraint constraints.txt --editable '.[dev]'
endif
	@touch $@

clean:
	rm -rf $(VENV)
