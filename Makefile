# Everything a fresh machine needs is behind these: `make demo`, `make test`.
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast worlds check bench bench-decisions docs lock clean install

install: $(VENV)/.installed

$(VENV)/.installed: requirements-install.lock requirements-dev.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "driftd needs Python 3.11 or newer: python3 is " + sys.version.split()[0])'
	@echo "Installing driftd into $(VENV) (once; a minute or two)"
	@python3 -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-install.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r requirements-dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: install            ## the whole story in a terminal, in under three minutes
	$(BIN)/driftd demo

check: install           ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check              ## everything, against real Kafka, MLflow and Prometheus where they can be started
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

test-fast: install       ## the inner loop: no servers, nothing that trains or measures at length; a minute and a half
	$(BIN)/pytest -q -n 2 --dist loadfile tests/unit -k "not postgresql" $(addprefix --ignore=tests/unit/,train trainers backtest measure)

worlds: install          ## thirty small teams with one daemon each: the table of docs/worlds.md (an hour or two)
	$(BIN)/python -m tests.worlds

bench: install           ## the budget table of docs/performance.md
	$(BIN)/python -m bench

bench-decisions: install ## driftd against what people use instead: the tables of docs/decisions-quality.md (hours)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements-bench.lock
	$(BIN)/python -m bench.decisions $(ARGS)

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
lock: install            ## rewrite the lock files from pyproject.toml
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) --group dev pyproject.toml -c requirements.lock -o requirements-dev.lock
	$(COMPILE) --group install -o requirements-install.lock
	$(COMPILE) --group bench -c requirements-dev.lock $(addprefix --no-emit-package ,narwhals numpy scipy) -o requirements-bench.lock
	$(COMPILE) serving/container/requirements.in -c requirements.lock -o serving/container/requirements.lock
	$(COMPILE) deploy/image/postgres.in -c requirements.lock -o deploy/image/postgres.lock
	$(COMPILE) deploy/image/mlflow.in -c requirements.lock -c deploy/image/postgres.lock -o deploy/image/mlflow.lock

docs: install            ## rewrite what is made from code: reference pages, dashboards, the manifests that hold them
	$(BIN)/python docs/generate.py
	$(BIN)/python -m dashboards.grafana.build
	$(BIN)/python deploy/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info .driftd*
