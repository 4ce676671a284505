# make demo   install into .venv, then the whole path on the bundled example
# make test   install what developers need, too, then all tests, the slow ones last
# make check  format, lint, types, tests but the slow ones: what must be green before a commit
# make fix    let the tools mend what they can, and bring the help texts of the README up to date
# make torture   faults, tampered models, random command lines, long streams; ends with a table

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NUMBERS := examples/numbers
SHARED := -n auto --maxprocesses 4 --dist worksteal
export OMP_WAIT_POLICY ?= PASSIVE
# pip would compile all of PyTorch; a module is compiled, and kept so, when it is first imported.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check fix torture clean

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
	$(BIN)/pytest $(SHARED) -m slow

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(SHARED)

fix: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tests/update_readme.py

torture: $(VENV)/installed
	$(BIN)/pytest tests/torture -m "not gpu"

clean:
	rm -rf $(VENV) $(NUMBERS)/data $(NUMBERS)/model
