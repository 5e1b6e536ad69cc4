# make setup | demo | evidence | test | soak | docs      VENV=path uses another environment (made there if there is none)
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# Python compiles what it imports, which is a small part of what is installed.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
STAMP = $(VENV)/.nl_detectron-is-set-up

.PHONY: setup demo evidence test soak docs

setup: $(STAMP)

# The snapshot is only for environments in which no Detectron2 is installed.
$(STAMP): $(wildcard requirements/*.txt) setup.py pyproject.toml dev/install_snapshot.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/base.txt -r requirements/app.txt -r requirements/docs.txt \
		-r requirements/export.txt
	$(PIP) --no-deps -r requirements/peers.txt
	$(BIN)/python dev/install_snapshot.py
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/python dev/demo.py

evidence: setup
	$(BIN)/python projects/far_cue/run.py --docs projects/far_cue

# One process for each core, and one core for each process. Where the environment forbids Python to
# write bytecode, each of a thousand processes would compile the whole package.
test: export PYTHONDONTWRITEBYTECODE =
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Up to an hour
soak: setup
	$(BIN)/python -m dev.soak --output docs/soak.md

# The variable turns off what the theme says about MkDocs 2.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"
