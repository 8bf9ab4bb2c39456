# Everything is installed into .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
KEEP   ?=

.PHONY: demo test check venv test-cluster test-e2e notebooks clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("passel needs Python 3.10 to 3.13, this is " + sys.version.split()[0] + "; say make PYTHON=python3.11") if not (3, 10) <= sys.version_info[:2] <= (3, 13) else None'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo 'make: $(PYTHON) cannot make an environment: install python3-venv (Debian), or say make PYTHON=...' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: venv
	$(BIN)/passel demo $(if $(KEEP),--keep)

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest

test-cluster: venv
	$(BIN)/python -m pytest -m cluster tests/cluster

test-e2e: venv
	$(BIN)/python -m pytest -m e2e tests/e2e

# Executes them all; build/notebooks has them with their pictures, as HTML.
notebooks: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,notebooks]'
	$(BIN)/python -m pytest -m notebooks tests/notebooks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
