# make train   train an orthogonal RNN on the copying task (CPU, about a minute)
# make test    run the tests
# make lint    formatting, lint, types
# make docs    build the site into docs/_build/html, warnings are errors
# make wheel   build the wheel and check that it holds exactly the package
# Each makes its own virtual environment in .venv first, where it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# mypy names a package by its folder: it gets to see this one as givens, whatever a checkout is called.
SOURCES := givens/__init__.py givens/extras.py givens/manifolds givens/optim givens/rnn

.PHONY: train test lint docs wheel clean

train: $(VENV)/.cli
	$(BIN)/givens train copying --run-dir runs/copying --overwrite

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/givens
	cd $(VENV)/src && $(abspath $(BIN))/mypy --config-file givens/pyproject.toml $(SOURCES)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel: $(VENV)/.lint
	rm -rf dist build
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python .ci/check_wheel.py dist/*.whl

clean:
	rm -rf $(VENV) build dist docs/_build docs/api/generated docs/gallery_built *.egg-info

# One stamp for each set of extras, renewed when the requirements change.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$*]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
