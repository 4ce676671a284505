# make demo   install into .venv, then the whole path on the bundled example
# make test   install what developers need, too, then the tests
# make check  format, lint, types, tests: what must be green before a commit
# make fix    let the tools mend what they can, and bring the help texts of the README up to date
# make slow   the tests that take minutes
# make torture   faults, tampered models, random command lines, long streams; ends with a table

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NUMBERS := examples/numbers
SHARED := -n auto --maxprocesses 4 --dist worksteal
export OMP_WAIT_POLICY ?= PASSIVE
# pip would compile all of PyTorch; a module is compiled, and kept so, when it is first imported.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check fix slow torture clean

$(VENV)/usable: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed: $(VENV)/usable
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/usable
	@BIN=$(BIN) sh $(NUMBERS)/demo.sh

test: $(VENV)/installed
	$(BIN)/pytest $(SHARED)

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(SHARED)

fix: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tests/update_readme.py

slow: $(VENV)/installed
	$(BIN)/pytest -m slow

torture: $(VENV)/installed
	$(BIN)/pytest tests/torture -m "slow or not slow"

clean:
	rm -rf $(VENV) $(NUMBERS)/data $(NUMBERS)/model
