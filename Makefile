PYTHON ?= python3
BIN := .venv/bin
# Without compiling every file in advance, which takes about as long as everything else: Python compiles what it imports.
# It has to be allowed to keep that, or every process compiles PyTorch again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
PYTEST := -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

.PHONY: setup demo test test-oldest test-newest docs leaderboard long faults fuzz gpu-check lint

# Stamps: each installs once, and again when the project file or the pins change.
.venv/.demo: pyproject.toml constraints.txt
	@echo "installing into .venv what runs studies: about 6 GB, one to three minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -c constraints.txt -e .
	touch $@

.venv/.ready: .venv/.demo
	@echo "installing into .venv what tests and checks need: about 1 GB more"
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

setup: .venv/.ready

demo: .venv/.demo
	$(BIN)/bench run --methods sbs,dnas,fixed,full_precision

# One process more than two cores: a sixth of the time tests wait for processes of their own.
test: setup
	$(BIN)/python $(PYTEST)

# Both ends of the ranges in pyproject.toml, each in an environment of its own that is made again: for once a week, and
# before a range is changed. TESTS=tests/bench/spec runs a part.
test-oldest: CONSTRAINTS = -c .venv-oldest/lowest.txt
test-oldest test-newest: test-%:
	@echo "installing into .venv-$* the $* versions that pyproject.toml allows: about 7 GB, some minutes"
	$(PYTHON) -m venv --clear .venv-$*
	$(PYTHON) tests/lowest_versions.py > .venv-$*/lowest.txt
	.venv-$*/bin/python $(INSTALL) $(CONSTRAINTS) -e '.[test]'
	.venv-$*/bin/python $(PYTEST) $(TESTS)

# A static site in build/leaderboard, from the published studies and the archives that ARCHIVES names.
leaderboard: setup
	$(BIN)/bench leaderboard docs/results $(ARCHIVES) --out build/leaderboard

# Every preset with the quick schedule, made shorter, and all its reports: an hour or so.
long: setup
	$(BIN)/python -m pytest -m long tests/long

# A thousand kills and other faults, and 300 bad inputs, in an hour or two; goes on where it was stopped.
faults: setup
	$(BIN)/python -m tests.faults.campaign --seed 0

# Ten thousand mutations of a file for each of its readers; BENCH_MUTATIONS=1000 makes it shorter.
fuzz: setup
	$(BIN)/python -m pytest -m long tests/long/test_hostile_files.py

# Tests, times of steps and a study on one GPU, in twelve minutes; DATA_DIR=DIR has CIFAR-100.
gpu-check: setup
	$(BIN)/python -m tests.scale.gpu_check --out gpu-check $(if $(DATA_DIR),--data-dir $(DATA_DIR))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The documentation site in build/site; stops at a link or anchor that leads nowhere.
docs: setup
	$(BIN)/python docs/make_site.py
