PYTHON ?= python3
# Both packages own the module `faiss`: never install both.
FAISS ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
# A relative path, so that a space in the path of the checkout does no harm.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(FAISS)

.PHONY: help setup demo benchmark docs test lint types test-fast test-slow reliability speed lock clean
.DEFAULT_GOAL := help

help:
	@echo "make setup            make .venv, once: then .venv/bin/odc cluster FOLDER -k 10"
	@echo "make demo             set up, then compare all methods on handwritten digits: a table and a report"
	@echo "make test             set up, then lint, types and the whole test suite"
	@echo "make lint, types, test-fast   its three parts;   make test-slow   the long checks"
	@echo "make docs             the documentation as a site to read without a network: site/index.html"
	@echo "make reliability      kill, starve and damage runs, feed hostile files: a table of what is survived"
	@echo "make benchmark        five seeds of all methods on handwritten digits"
	@echo "make speed            our times next to a floor measured in the same run: exit 1 where one is missed"
	@echo "make lock             choose new versions (needs uv);   make clean   remove .venv and caches"
	@echo "PYTHON=python3.12 chooses the interpreter, FAISS=gpu or FAISS=cpu the FAISS package."

# The checks say in one line what a bare system lacks. A virtual environment of another FAISS is made anew.
$(READY): setup.py pyproject.toml requirements/lock.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 or newer (Debian: apt-get install python3 python3-venv)" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1), but 3.10 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "the Python module venv is missing: apt-get install python3-venv (Debian, Ubuntu)" >&2; exit 2; }
	@echo "setting up $(VENV) (PyTorch is several GB: some minutes, once)"
	@rm -f $(VENV)/ready-*
	@if [ -e $(VENV)/faiss ] && [ "$$(cat $(VENV)/faiss)" != "$(FAISS)" ]; then rm -rf $(VENV); fi
	@[ -x $(BIN)/python ] && $(BIN)/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "$(FAISS)" > $(VENV)/faiss
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements/lock.txt setuptools wheel
	@$(BIN)/python -m pip install --disable-pip-version-check -c requirements/lock.txt --no-build-isolation -e '.[$(FAISS),test,dev]'
	@touch $@

setup: $(READY)

# One seed of every method on handwritten digits, with a report; the shared pre-training and SPICE-Semi are short ones.
demo: $(READY)
	@$(BIN)/odc compare --methods kmeans-pixels kmeans-moco dc odc deepercluster spice-self spice --dataset digits \
		--seeds 0 --pretrain-epochs 60 --cfg-options semi.train_cfg.max_epochs=10 --out work_dirs/demo

# Five seeds, from random weights and from MoCo, next to what scikit-learn makes of the same features.
benchmark: $(READY)
	@$(BIN)/odc compare --methods kmeans-pixels kmeans-moco gmm-moco spectral-moco agglomerative-moco dc odc \
		deepercluster dc-moco odc-moco spice-self spice --dataset digits --seeds 0 1 2 3 4 --out work_dirs/benchmark

# A link that leads nowhere is an error.
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

test: lint types test-fast

lint: $(READY)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

types: $(READY)
	@$(BIN)/python -m mypy

# Two files at a time: most tests take one core, and some 1.5 GB of memory. A thread each: two processes of two threads
# on two cores wait for each other.
test-fast: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Long checks: training killed at random moments, the whole demo, a million samples, a training from the wheel.
test-slow: $(READY)
	@$(BIN)/python -m pytest -m slow

# Fails where anything is lost, crashes or is executed. Twenty minutes on two idle cores.
reliability: $(READY)
	@$(BIN)/python -m benchmarks.reliability --out benchmarks/results/reliability.md

# Fails where a bar is missed. Three to ten minutes on an idle core.
speed: $(READY)
	@$(BIN)/python -m benchmarks.speed --json work_dirs/speed.json

lock:
	@uv pip compile --universal --python-version 3.10 --no-emit-index-url --no-annotate --all-extras \
		--custom-compile-command "make lock" -o requirements/lock.txt setup.py requirements/build.in

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
