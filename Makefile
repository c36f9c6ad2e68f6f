# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait spin: see launchers/__init__.py.
export GOMP_SPINCOUNT ?= 10000
export OPENBLAS_NUM_THREADS ?= 1
# The tests start hundreds of processes: where Python keeps no compiled modules, each compiles Tandem's anew.
unexport PYTHONDONTWRITEBYTECODE
# Triggers a re-install when what the project needs has changed.
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-lowest check lint docs ci clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@bash .ci/setup $(PYTHON) $(VENV) constraints.txt dev
	@touch $(STAMP)

demo: setup
	$(BIN)/tandem demo $(if $(FULL),--full)

# As many processes as cores, at most 4 (each holds some GB); one thread in each: many tests start several more.
test: export OMP_NUM_THREADS ?= 1
test: setup
	@echo "the default tests: under ten minutes on two cores"
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not slurm and not gpu and not multi_gpu"

# Before each commit, in under a minute: lint, types, the import rule, and the tests of what differs from main.
check: export OMP_NUM_THREADS ?= 1
check: lint
	tests=$$($(BIN)/python .ci/changed_tests.py $(or $(BASE),main)); [ -z "$$tests" ] || \
	$(BIN)/pytest -q -m "not slow and not slurm and not gpu and not multi_gpu" $$tests

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site in build/docs, warnings as errors. Its packages join .venv at the first call: ten seconds, no part of setup.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# The default tests on the lowest versions that pyproject.toml admits, in a folder of their own.
LOWEST_PYTHON ?= python3.10
LOWEST := .venv-lowest
test-lowest: export OMP_NUM_THREADS ?= 1
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not slurm and not gpu and not multi_gpu"

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	@bash .ci/setup $(LOWEST_PYTHON) $(LOWEST) constraints-lowest.txt test
	@touch $@

ci:
	bash .ci/run

clean:
	rm -rf $(VENV) $(LOWEST) build *.egg-info
