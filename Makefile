# make train   train an orthogonal RNN on the copying task (CPU, about a minute)
# make test    run the tests
# make lint    formatting, lint, types, workflows
# make docs    build the site into docs/_build/html, warnings are errors
# make wheel   build the sdist, and the wheel from it, twice; check that they are the same, and what they hold
# Each makes its own virtual environment in .venv first, where it is missing. These two need pipx instead:
# make matrix  run the tests on every supported Python, with the oldest and with the newest dependencies
# make audit   look for known vulnerabilities in the pinned dependencies

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NOX = pipx run 'nox[uv]' --noxfile .ci/noxfile.py

# mypy names a package by its folder: it gets to see this one as givens, whatever a checkout is called.
SOURCES := givens/__init__.py givens/extras.py givens/manifolds givens/optim givens/rnn

.PHONY: train test lint docs wheel matrix audit clean

train: $(VENV)/.cli
	$(BIN)/givens train copying --run-dir runs/copying --overwrite

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/givens
	cd $(VENV)/src && $(abspath $(BIN))/mypy --config-file givens/pyproject.toml $(SOURCES)
	$(BIN)/zizmor --offline --quiet .github

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel: $(VENV)/.lint
	rm -rf dist build
	$(BIN)/python .ci/build_dist.py dist
	$(BIN)/python .ci/build_dist.py build
	diff --recursive dist build
	$(BIN)/python .ci/check_dist.py dist

matrix:
	$(NOX) --session tests

audit:
	$(NOX) --session audit

clean:
	rm -rf $(VENV) .ci/.nox build dist docs/_build docs/api/generated docs/gallery_built *.egg-info

# One stamp for each set of extras, renewed when the requirements change.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$*]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
