# `make bench` and `make test` set up everything in .venv and run; nothing needs to be installed first but Python and,
# for the native kernels, a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h') setup.py pyproject.toml
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: bench bench-ops test lint format clean

# Two rounds, to stay within six minutes on two cores; `fused-resnet bench` alone takes five.
bench: $(VENV)/.built
	$(BIN)/fused-resnet bench --rounds 2 --json results.json --plot results.png

# Per op and per block, with GB/s: pytest-benchmark.
bench-ops: $(VENV)/.built
	$(BIN)/python -m pytest benchmarks --benchmark-only

test: $(VENV)/.built
	$(BIN)/python -m pytest

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf build dist *.egg-info fused_resnet/*.so $(VENV)

# An editable install; again whenever a source of the native module or the list of dependencies changes.
$(VENV)/.built: $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .[dev]
	touch $@
