# `make demo` and `make test` need Python 3.10 or later and nothing else; they share one virtual environment.
PYTHON ?= python3
VENV ?= .venv
# Where torch and torchvision come from, if not from PyPI: .../whl/cpu has builds without CUDA, 3 GB smaller.
TORCH_INDEX ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Files of tests side by side, each in one process, since the tests of a file share what is costly to set up.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-faults test-pythons lint lock clean

demo: $(INSTALLED)
	$(BIN)/python -m rearkit run recipes/mnist.toml

test: $(INSTALLED) lint
	$(PYTEST) -m "not slow"

test-all: $(INSTALLED) lint
	$(PYTEST)

# The wheel in a fresh environment of each Python from 3.10 to 3.13 that is found, or of those in PYTHONS.
test-pythons:
	$(PYTHON) tests/helpers/pythons.py $(PYTHONS)

# Thousands of faults: fuzzers, flipped bits, full disks, signals, kills; one table at the end. FAULT_SECONDS is the time
# of all fuzzers together, FAULT_SEED their seed.
test-faults: $(INSTALLED)
	$(BIN)/python tests/faults/count_faults.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation, into site/. Its reference pages are made from the settings, the commands and the docstrings.
.PHONY: docs
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) \
		$(shell grep -E '^torch(vision)?==' constraints.txt))
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

# After a change of the dependencies: pin the newest that their ranges allow, for each Python and platform.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra demo --extra dev \
		--no-annotate --custom-compile-command "make lock" pyproject.toml --output-file constraints.txt
	rm -r .venv-lock

clean:
	rm -rf $(VENV) .venv-lock build *.egg-info
