# make setup | demo | evidence | test | soak | docs      VENV=path uses another environment (made there if there is none)
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
# Python compiles what it imports, which is a small part of what is installed.
INSTALL = $(PIP) install --no-compile
STAMP = $(VENV)/.nl_detectron-is-set-up

.PHONY: setup demo evidence test soak docs

setup: $(STAMP)

# Two lists at once, each on a core: what the second needs is named in it or in base.txt. The snapshot
# is only for environments in which no Detectron2 is installed.
$(STAMP): $(wildcard requirements/*.txt) setup.py pyproject.toml dev/install_snapshot.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements/base.txt & base=$$!; \
	$(INSTALL) --no-deps -r requirements/app.txt -r requirements/docs.txt \
		-r requirements/export.txt; others=$$?; wait $$base && exit $$others
	$(PIP) check
	$(INSTALL) --no-deps -r requirements/peers.txt
	$(BIN)/python dev/install_snapshot.py
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

# What is freed stays with its process: glibc would give each map of features back to the system and
# take it anew, by which a detector needs up to half as much time again.
demo evidence test: export MALLOC_ARENA_MAX = 1
demo evidence test: export MALLOC_MMAP_THRESHOLD_ = 1073741824
demo evidence test: export MALLOC_TRIM_THRESHOLD_ = 4294967296

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
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
		--dist worksteal; tests=$$?; wait $$types && exit $$tests

# Up to an hour
soak: setup
	$(BIN)/python -m dev.soak --output docs/soak.md

# The variable turns off what the theme says about MkDocs 2.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"
