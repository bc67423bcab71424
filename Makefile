# Every target sets itself up: a virtual environment in .venv with kits-cascade installed editable.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo
WEIGHTS ?= weights
DEVICE ?= cpu
IMAGE ?= kits-cascade:$(DEVICE)

.PHONY: help image demo weights test test-fast check format setup clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## virtual environment with everything (about 6 GB, 3 minutes)

$(STAMP): pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## what the networks find in painted CT, or in CT=ct.nii.gz: scores, page, picture in DEMO=demo
	$(BIN)/kits-cascade demo -o $(DEMO) $(if $(CT),--ct $(CT))

weights: $(STAMP)  ## the shipped networks, from MASKS=DIR and ANATOMY=DIR (docs/painter.md); hours, resumable
	$(BIN)/kits-cascade weights -o $(WEIGHTS) --masks $(MASKS) --anatomy $(ANATOMY)

test: $(STAMP)  ## every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(STAMP)  ## unit tests only, about a minute
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

check: $(STAMP)  ## ruff, mypy, import directions; seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

image:  ## a container image; DEVICE=gpu for one with CUDA, IMAGE=name:tag for its name
	@command -v docker >/dev/null || command -v podman >/dev/null || \
	  { echo "no container engine: install docker or podman"; exit 1; }
	$$(command -v docker || command -v podman) build --build-arg DEVICE=$(DEVICE) --tag $(IMAGE) .

format: $(STAMP)  ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
