PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test docs leaderboard long faults fuzz gpu-check lint

# One stamp for both targets: installs once, again when the project file or the pins change.
.venv/.ready: pyproject.toml constraints.txt
	@echo "installing into .venv: about 5 GB, some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

setup: .venv/.ready

demo: setup
	$(BIN)/bench run --methods sbs,dnas,fixed,full_precision

# One process more than two cores: a sixth of the time tests wait for processes of their own.
test: setup
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

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
