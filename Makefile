# What a person can do here; every target sets itself up. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: help venv demo test lint labs soak gpu bench bench-peers bench-link safety checkpoints exports format clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is missing or older than 3.10; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing what the demo needs into $(VENV) (torch, scikit-learn, matplotlib)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing everything for development into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

venv: $(VENV)/.dev ## everything for development, in .venv

demo: $(VENV)/.demo ## train, kill -9 again and again, compare the weights; results in demo-out/
	@$(BIN)/python -m bench.demo

test: $(VENV)/.dev ## the test suite; first installs the light packages of packages.txt where it is root
	@.ci/apt light
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## format check, ruff, mypy --strict, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

labs: ## install the heavy packages of packages.txt where it is root
	@.ci/apt heavy

soak: $(VENV)/.dev ## the long counts: 200 kills, result in bench/results/, and the tests marked so
	$(BIN)/python -m bench.soak --kills 200
	$(BIN)/python -m pytest -m soak

gpu: $(VENV)/.dev ## the tests that need a CUDA device, on a machine that has one
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/.dev ## recovery and start-up times beside their peers; results in bench/results/
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.recovery

$(PEERS)/.peers: $(BIN)/python bench/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	@echo "installing the other checkpoint engines and SSH libraries into $(PEERS)"
	@for wanted in $$(sed 's/ *#.*//' bench/requirements.txt); do \
	  $(PEERS)/bin/python -m pip install -q --disable-pip-version-check -c bench/requirements.txt "$$wanted" \
	    || echo "$$wanted does not install here: what needs it will be listed as absent" >&2; done
	@$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e . matplotlib rich
	@touch $@

bench-peers: $(PEERS)/.peers ## the other checkpoint engines and SSH libraries, in an environment of their own

bench-link: $(PEERS)/.peers ## calls, commands, uploads and folders over SSH beside ssh, asyncssh and paramiko
	@.ci/apt light
	$(PEERS)/bin/python -W ignore -m bench.link --keep

safety: $(PEERS)/.peers ## every checkpoint engine, every fault; result in bench/results/. Root: also real power loss
	@.ci/apt light
	$(PEERS)/bin/python -W ignore -m bench.safety --keep

checkpoints: $(PEERS)/.peers ## time and bytes of saving and restoring, engine beside engine; results in bench/results/
	$(PEERS)/bin/python -W ignore -m bench.snapshot --keep
	$(PEERS)/bin/python -W ignore -m bench.write --dir $(HOME)
	$(PEERS)/bin/python -W ignore -m bench.save --keep --state-mb 100
	$(PEERS)/bin/python -W ignore -m bench.save --keep --state-mb 600 --steps 60 --saves 6
	$(PEERS)/bin/python -W ignore -m bench.save --keep --state-mb 4000 --steps 300 --saves 4 --rounds 1
	$(PEERS)/bin/python -W ignore -m bench.restore --keep --state-mb 100
	$(PEERS)/bin/python -W ignore -m bench.restore --keep --state-mb 600
	$(PEERS)/bin/python -W ignore -m bench.dedup --keep

exports: $(PEERS)/.peers ## transformers reads what we export for it: the same weights to the bit
	$(PEERS)/bin/python -W ignore -m bench.exports

format: $(VENV)/.dev ## format in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the targets above made, .venv included
	rm -rf $(VENV) $(PEERS) demo-out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
