# `make demo` and `make test` need Python 3.10 to 3.12 and nothing else; they share one virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Files of tests side by side, each in one process, since the tests of a file share what is costly to set up.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint lock clean

demo: $(INSTALLED)
	$(BIN)/python -m rearkit run recipes/mnist.toml

test: $(INSTALLED) lint
	$(PYTEST) -m "not slow"

test-all: $(INSTALLED) lint
	$(PYTEST)

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

# After a change of the dependencies: install the newest that their ranges allow, and pin what came.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[demo,dev]'
	.venv-lock/bin/python -m pip freeze --exclude rearkit > constraints.txt
	rm -r .venv-lock

clean:
	rm -rf $(VENV) .venv-lock build *.egg-info
