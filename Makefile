# Every target works on a fresh machine with Python 3.11 or later and make; uv is used where it is installed.

PYTHON ?= python3
# What `make serve` and `make bench` pass on, for example: make serve ARGS="--port 9000"
ARGS ?=
# What `make load` loads.
HOST ?= http://127.0.0.1:8000
# How old a release must be before `make constraints` chooses it: poisoned ones are mostly found within days.
COOLING ?= 7 days

# Most tests wait for servers that start, end, or notice something. `tests/conftest.py` says what stays together, and in
# which order: the files that take longest are not those with the most tests.
SIDE_BY_SIDE := --numprocesses 2 --no-loadscope-reorder

BIN := .venv/bin
INPUTS := pyproject.toml constraints.txt .ci/install.py

# An environment that forbids bytecode makes every start more than twice as slow, and every measurement wrong.
unexport PYTHONDONTWRITEBYTECODE
# pyright comes complete in its wheel; this keeps it from asking a registry whether there is a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: audit licences sbom help serve test check bench bench-peers load soak browser nginx docs constraints clean python

help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: .venv/serve.stamp ## Set up if needed, then serve on http://127.0.0.1:8000
	@exec $(BIN)/mnemosine serve $(ARGS)

test: check ## Set up if needed, then check and run all tests, real PostgreSQL and Redis included
	$(BIN)/python -m pytest -m "not soak" $(SIDE_BY_SIDE)

check: .venv/dev.stamp ## Lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: .venv/dev.stamp ## Measure before, the limits and ourselves in under five minutes; ARGS=--full for half an hour
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: .venv/dev.stamp ## Measure LiteLLM, Agno and LangGraph beside ourselves
	$(BIN)/python -m benchmarks --peers $(ARGS)

load: benchmarks/.venvs/locust.stamp ## Load a running server with locust: make load ADMIN_PASSWORD=... [HOST=http://...]
	benchmarks/.venvs/locust/bin/locust -f tests/load_test.py --host=$(HOST) --headless --users 10 --spawn-rate 10 --run-time 20s

benchmarks/.venvs/locust.stamp: | python
	@$(PYTHON) -m venv benchmarks/.venvs/locust
	@benchmarks/.venvs/locust/bin/python -m pip --disable-pip-version-check --quiet install 'locust>=2.40'
	@touch $@

soak: .venv/dev.stamp ## The slow tests, two at a time: leaks, faults and recovery over minutes, with a table
	$(BIN)/python -m tests.soak $(ARGS)

browser: ## Install Debian's Chromium with its driver, which the tests of the dashboard want (as root)
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver

nginx: ## Install Debian's nginx, which the tests of several replicas want (as root)
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light

docs: .venv/dev.stamp .venv-docs/stamp ## Renew the reference pages and build the documentation into site/
	$(BIN)/python -m docs.generate .venv-docs/pages
	.venv-docs/bin/mkdocs build --strict --quiet
	$(BIN)/python -m docs.loads site

.venv-docs/stamp: | python
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip --disable-pip-version-check --quiet install 'mkdocs>=1.6,<2'
	@touch $@

constraints: ## Choose the versions anew, none younger than a week, with hashes (needs uv)
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --exclude-newer "$(COOLING)" --generate-hashes --all-extras \
		--no-header --no-emit-index-url --no-emit-find-links --output-file constraints.txt pyproject.toml

licences: .venv/dev.stamp ## Print the licence of every installed package; tests/security fails on one that nobody looked at
	@$(BIN)/python .ci/bill.py licences

sbom: .venv/dev.stamp ## Print the bill of materials of the environment as CycloneDX JSON
	@$(BIN)/python .ci/bill.py

audit: benchmarks/.venvs/audit.stamp ## Look the pins up among known vulnerabilities (needs the advisories of the package index)
	@$(PYTHON) .ci/audit.py benchmarks/.venvs/audit/bin/pip-audit

benchmarks/.venvs/audit.stamp: | python
	@$(PYTHON) -m venv benchmarks/.venvs/audit
	@benchmarks/.venvs/audit/bin/python -m pip --disable-pip-version-check --quiet install 'pip-audit>=2.9'
	@touch $@

clean: ## Remove the environment and everything generated; data/ stays
	rm -rf .venv .venv-docs site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "make: $(PYTHON) was not found; install Python 3.11 or later, or name it: make serve PYTHON=python3.12" >&2; \
		exit 1; }

.venv/serve.stamp: $(INPUTS) | python
	@test -e .venv/dev.stamp && test -z "$$(find $(INPUTS) -newer .venv/dev.stamp)" \
		|| $(PYTHON) .ci/install.py redis postgres
	@touch $@

.venv/dev.stamp: $(INPUTS) | python
	@$(PYTHON) .ci/install.py dev
	@touch $@
