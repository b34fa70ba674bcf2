# Two commands on a fresh machine: `make demo`, `make test`. Each makes .venv first if it isn't there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 180
MUTANTS ?=
READY := $(VENV)/.ready

.PHONY: help demo test soak chaos check bench docs clean
help:
	@echo "make demo    fly the simulated beamline once: scan, reduction, catalog, NeXus file"
	@echo "make test    run the tests"
	@echo "make soak    simulate the pool in virtual time, SEEDS=20000 runs in which everything goes wrong"
	@echo "make chaos   try every fault on real processes (ONLY=\"worker-kill sink-kill\" for some)"
	@echo "make check   format, lint, types, import contracts"
	@echo "make fuzz    fuzz the codecs and the chunk reader for FUZZ_SECONDS ($(FUZZ_SECONDS))"
	@echo "make mutants see whether the tests notice small changes to the cores (MUTANTS=\"workers.intervals …\" for some)"
	@echo "make bench   measure the path and the kernel (haltere bench path, haltere bench kernel)"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make clean   remove what these made"

demo: $(READY)
	$(BIN)/haltere demo

test: $(READY)
	$(BIN)/pytest

SEEDS ?= 20000
soak: $(READY)
	$(BIN)/python -m tests.simulation.soak --seeds $(SEEDS)

chaos: $(READY)
	$(BIN)/python -m tests.faults $(addprefix --only ,$(ONLY))

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(READY)
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

mutants: $(READY)
	nice -n 19 $(BIN)/python -m tests.mutants.run $(MUTANTS)

bench: $(READY)
	$(BIN)/haltere bench path
	$(BIN)/haltere bench kernel

docs: $(READY)
	$(BIN)/sphinx-build -qW docs docs/_build/html

# fisx (PyMca's physics) comes as source, so the test extra needs a C++ compiler and Python's headers.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "haltere needs Python 3.11 or later, $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	@if ! command -v g++ >/dev/null \
	  || ! $(PYTHON) -c 'import ensurepip, os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get -q update && apt-get -qy install g++ python3-dev python3-venv; \
	  else \
	    echo "haltere's tests need a C++ compiler, Python's headers and venv: sudo apt-get install g++ python3-dev python3-venv"; \
	    exit 1; \
	  fi; \
	fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .fuzz
