# datekit: `make demo` shows it, `make test` checks it, `make help` lists the rest.
# Tested versions are pinned in one place, .ci/constraints.txt; the packages that need them are named in pyproject.toml.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
CONSTRAINTS := .ci/constraints.txt
WORKERS ?= 2
# A process a worker, one thread each; the cells of a notebook stay together.
PYTEST := TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
export PYTHONUNBUFFERED := 1

.PHONY: help install demo lab test test-fast figures table table-families table-edits ablations softrepa guides bench bench-explorer bench-page bench-decoders bench-gpu \
  train-shapes page docs badges dist lint size clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## the environment in .venv, package included (editable)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned versions need Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[dev]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --no-deps image-reward
	@touch $@

demo: install  ## the quickstart notebook, run top to bottom; writes it back, figures/quickstart.png and the table
	$(BIN)/python .ci/notebooks.py 01_quickstart
	@echo; echo "figures/quickstart.png and notebooks/01_quickstart.ipynb are written; 'make lab' opens JupyterLab."

lab: install  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

test: install  ## the library's tests and every notebook, in one pytest run
	$(PYTEST) tests $(NOTEBOOKS) --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 600 \
	  --nbval-kernel-startup-timeout 600

test-fast: install  ## the library's tests without the notebooks
	$(PYTEST) tests

figures: install  ## run every notebook, write it back with its outputs, and everything in figures/
	$(BIN)/python .ci/notebooks.py
	$(BIN)/python .ci/screenshots.py

STUDY := OMP_NUM_THREADS=1 PYTHONPATH=notebooks $(BIN)/python -m studies
PAGES := PYTHONPATH=notebooks $(BIN)/python .ci/tables.py

table: install  ## the held-out comparisons of methods (about three hours on one core; resumes)
	$(STUDY) compare
	$(STUDY) concepts
	$(PAGES)

table-families: install  ## oracle by task family and FID, through datekit generate and evaluate (about ten minutes on one core; resumes)
	$(STUDY) families
	$(PAGES)

table-edits: install  ## the comparison of edits with ground truth (about an hour and a half on one core; resumes)
	$(STUDY) edits
	$(PAGES)

ablations: install  ## the ablation study (about two hours and a half on one core; resumes)
	$(STUDY) quickstart
	$(STUDY) ablate
	$(BIN)/python .ci/notebooks.py 07_ablations 06_which_reward 08_rho_schedule
	$(PAGES)

softrepa: install  ## soft tokens of both models, trained and judged (about half an hour on one core)
	$(STUDY) softrepa
	$(STUDY) softrepa --model shapes-flow
	$(PAGES)

guides: install  ## which reward guides well, and when DATE is the better buy (about three and a half hours on one core; resumes); figures/base_rate.png
	$(STUDY) what-guides
	$(STUDY) guide-recipe
	$(STUDY) base-rate
	$(BIN)/python .ci/notebooks.py 06_which_reward
	$(PAGES)

bench: install  ## time and memory on this machine
	PYTHONPATH=notebooks $(BIN)/python -m studies bench
	$(PAGES)

bench-explorer: install  ## how fast the explorer answers on this machine
	PYTHONPATH=notebooks $(BIN)/python -m studies bench-explorer
	$(PAGES)

bench-page: page  ## how fast the live page is on this machine, in a browser without a GPU
	$(BIN)/python .ci/page.py --measure
	$(PAGES)

bench-decoders: install  ## what cheaper decoders cost and bring (about ten minutes on one core)
	$(STUDY) decoders
	$(PAGES)

bench-gpu: install  ## the published architectures at full size, random weights, on a GPU (about an hour on a large one; resumes)
	PYTHONPATH=notebooks $(BIN)/python -m studies bench-gpu
	$(PAGES)

train-shapes: install  ## the shipped models from nothing, with a fixed seed
	PYTHONPATH=notebooks $(BIN)/python -m studies.training

page: install  ## the live page in build/page: DATE in a browser, nothing to install (npm brings its runtime)
	$(BIN)/python .ci/page.py

docs: install  ## the documentation site in build/docs, without a network
	OMP_NUM_THREADS=1 $(BIN)/python .ci/docs.py

badges: install  ## "Open in Colab" in README and notebooks: make badges REPOSITORY=owner/name; without one they go
	$(BIN)/python .ci/badges.py $(REPOSITORY)

dist: install  ## wheel and source archive, weights included
	rm -rf build
	$(BIN)/python -m build --outdir dist

lint: install  ## style, and the types of the public names
	$(BIN)/ruff check datekit tests notebooks .ci
	$(BIN)/ruff format --check datekit tests notebooks .ci
	$(BIN)/mypy

size:  ## lines by room, beside their targets
	@$(PYTHON) .ci/size.py

clean:  ## what was built, not the environment
	rm -rf dist build *.egg-info .pytest_cache .hypothesis .mypy_cache
