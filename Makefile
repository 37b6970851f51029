# make demo    sets everything up, then runs the main job on this machine
# make test    sets everything up, then passes the checks and the tests
# make setup   only the .venv (PYTHON=/path/to/python3 picks the interpreter)
# make lint    style, types and floors; make format mends the style
# make prove-kube  every scenario on the clusters of KUBECONFIG (tests/kube/regions.py); more than an hour
# make bench   the measurements of benchmarks/
# make clean   removes what the others made

BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test prove-kube lint format bench clean

help:
	@sed -n 's/^# //p' Makefile

setup:
	@python=$$(PYTHON='$(PYTHON)' scripts/python) && "$$python" scripts/setup.py

demo: setup
	@$(BIN)/lora-ops demo

test: lint
	@$(BIN)/python -m pytest --cov --cov-report=term $(PYTEST)

prove-kube: SHELL := /bin/bash
prove-kube: setup
	@LORA_OPS_PROVE=1 $(BIN)/python -m pytest -rA -s tests/kube $(PYTEST) 2>&1 | tee prove-kube.log; exit $${PIPESTATUS[0]}

lint: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

clean:
	-@[ ! -f .demo/lora-ops.yaml ] || $(BIN)/lora-ops down --spec .demo/lora-ops.yaml
	@git worktree prune
	rm -rf .import_linter_cache .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .demo .examples build dist output demo-report.json
