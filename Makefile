# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait spin: see launchers/__init__.py.
export GOMP_SPINCOUNT ?= 10000
export OPENBLAS_NUM_THREADS ?= 1
# Triggers a re-install when what the project needs has changed.
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint ci clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/tandem demo $(if $(FULL),--full)

# As many processes as cores, at most 4 (each holds some GB); one thread in each: many tests start several more.
test: export OMP_NUM_THREADS ?= 1
test: setup
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not slurm and not gpu and not multi_gpu"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ci:
	bash .ci/run

clean:
	rm -rf $(VENV) build *.egg-info
