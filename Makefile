# The commands that the README promises. Everything installs into .venv, pinned with hashes by requirements.lock.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

# A Python may be named: `make PYTHON=/path/to/python3.12 …`, or by pyenv's own variable, `PYENV_VERSION=3.12.1 make …`.
# Otherwise it is the first that works. (pyenv's `python3.12` is there, and fails, where another version is chosen.)
NAMED := $(filter command environment,$(firstword $(origin PYTHON)))$(PYENV_VERSION)
ifeq ($(origin PYTHON),undefined)
FITS := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYENV := $(if $(PYENV_VERSION),"$${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(PYENV_VERSION)/bin/python3")
PYTHON := $(shell for p in $(PYENV) python3.12 python3.11 python3; do "$$p" -c '$(FITS)' >/dev/null 2>&1 && echo "$$p" && break; done)
endif

# A .venv of another Python is left as it is: the one of a named Python stands beside it, as .venv-3.12.
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
WANTED := $(if $(NAMED),$(shell "$(PYTHON)" -c '$(VERSION)' 2>/dev/null))
THERE := $(shell test -x .venv/bin/python && .venv/bin/python -c '$(VERSION)' 2>/dev/null)
VENV := $(if $(and $(WANTED),$(THERE),$(filter-out $(THERE),$(WANTED))),.venv-$(WANTED),.venv)
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export WHYLOGS_NO_ANALYTICS := True
export MLFLOW_DISABLE_TELEMETRY := true

# Coverage is cheap where Python has sys.monitoring, from 3.12 on. Without it Python-heavy tests take
# 70 % longer, so that 3.11 goes without; `make test COVERAGE=--cov` measures it all the same.
MONITORS := import sys; print("--cov" if sys.version_info >= (3, 12) else "")
COVERAGE = $(shell $(BIN)/python -c '$(MONITORS)')
MEASURED := lines that pytest itself runs, without those of lessons, commands, kernels and Ray
UNMEASURED := not measured: it is cheap from Python 3.12 on (make PYTHON=/path/to/python3.12 test)
COVERED = $(if $(COVERAGE),$(MEASURED),$(UNMEASURED))

.PHONY: setup system demo test chaos tables soak check lint export outputs readme lock clean

setup: $(VENV)/installed  ## everything that runs need, in .venv

$(VENV)/installed: requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or 3.12 is needed and neither is on the path: install one, or say make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	if [ -n "$(NAMED)" ] && [ -z "$(filter 3.11 3.12,$(WANTED))" ]; then echo "expected a Python 3.11 or 3.12, as in make PYTHON=/path/to/python3.12; $(PYTHON) $(if $(WANTED),is $(WANTED),does not run)" >&2; exit 1; fi
	if [ "$(VENV)" != .venv ]; then echo "Python $(WANTED) gets $(VENV), for .venv has Python $(THERE)" >&2; fi
	echo "setting up $(VENV) from requirements.lock: once, some minutes" >&2
	$(BIN)/python -c '' 2>/dev/null || "$(PYTHON)" -m venv $(VENV)
	# uv itself comes from the lock too: its entry, hashes and all, goes to pip.
	awk '/^[^ #]/ {on = /^uv==/} on' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.lock
	export VIRTUAL_ENV="$(CURDIR)/$(VENV)"
	UV_LINK_MODE=copy $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

system: setup  ## what tests use beyond Python: a browser, PostgreSQL
	@missing=""
	command -v chromium >/dev/null || missing="chromium"
	command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"
	if [ -z "$$missing" ]; then exit 0; fi
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	  # Programs only: without a main cluster there is no server to start, now or at boot.
	  mkdir -p /etc/postgresql-common
	  [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
	else echo "$$missing: not installed, and this is not root: tests that need it will be skipped (apt-get install $$missing)" >&2; fi

demo: setup  ## the whole churn workflow, from data to a live, monitored endpoint; its traffic is simulated
	@step() { printf '\n%s\n$$ %s\n' "$$1" "$${*:2}"; "$${@:2}"; }
	step "1 of 6: eight notebooks, from the data to a deployed model" mlops-nb run
	step "2 of 6: predictions for customers as they are" mlops-nb simulate --wave 1
	step "3 of 6: monitoring of this traffic; it should be quiet" mlops-nb monitor churn
	step "4 of 6: predictions for the same customers after a price rise" mlops-nb simulate --wave 2
	step "5 of 6: monitoring of that traffic; it should raise an alert" mlops-nb monitor churn
	step "6 of 6: the state of the workspace" mlops-nb status

test: system  ## every test: the notebooks' lessons, then tests/; coverage
	@echo "coverage: $(COVERED)"
	python -m pytest -n 2 --dist loadgroup $(COVERAGE)

chaos: system  ## the random-kill suites in full
	python -m pytest -m chaos --full-chaos -n 2 --dist loadgroup

tables: system  ## ten public tables, each from its file to a monitored endpoint; three are in `make test`
	python -m pytest -m tables -n 2 --dist loadgroup

soak: system  ## the longest tests: run them before a release
	python -m pytest -m soak

lint: setup
	ruff check .
	ruff format --check .
	lint-imports --no-cache
	python tests/check_types.py

check: system lint  ## clean and export change nothing, lint, layers, types, all tests, the wheel
	python tests/check_export.py
	echo "coverage: $(COVERED)"
	python -m pytest -n 2 --dist loadgroup $(COVERAGE)
	python tests/check_wheel.py

export: setup  ## notebooks -> library and README.md
	nbdev-clean
	nbdev-export
	$(MAKE) readme

outputs: demo  ## the reference stages with what a run of them shows
	mlops-nb simulate --wave 2
	mlops-nb run --from monitor
	python tests/outputs.py

readme: setup
	jupyter nbconvert --to markdown --no-prompt --output-dir . --output README nbs/index.ipynb

COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet
STARTER_LOCK := mlops_nb/templates/starter/requirements.lock

lock:  ## resolve again; every extra and group, both Pythons, no addresses; the same pins for a workspace
	$(COMPILE) --all-extras --group dev --group workspace --upgrade --output-file requirements.lock
	$(COMPILE) --group workspace --constraints requirements.lock --output-file $(STARTER_LOCK)

clean:
	rm -rf .venv .venv-3.* build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage .coverage.*
