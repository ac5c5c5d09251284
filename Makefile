# Every target makes .venv first, so `make demo` and `make test` work on a machine that has only Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench emulator clean

demo: $(STAMP)
	$(BIN)/edgec compress --recipe minilm-int8 --out build/minilm-int8 --force

# Files are handed out as they are collected: in the order of their number of tests the slowest would come last, alone.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks.minilm --help

# The arm64 system that the emulated tests and `--on qemu://CPU` run in: a download, so it is asked for by name.
emulator: $(STAMP)
	$(BIN)/edgec doctor --install-emulator

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache

# torch goes first and alone: with it in place no other package pulls a CUDA build in.
$(STAMP): pyproject.toml runtime/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e "./runtime[text,search]" -e ".[demo,dev,ray,speech]"
	$(BIN)/edgec doctor --repair
	touch $@
