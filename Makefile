# Everything runs through environment.sh, which makes the Python environment when it is missing.
# Needs GNU Make 3.81 (macOS has it), a POSIX shell and Python 3.11 or newer.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book record test test-site test-slow house links lab environment lint audit lock clean profile
.PHONY: cores chapter wheel compare reference why

PROFILE ?= quick
RUNS ?= recordings/runs.yml
THREADS ?= 1
CLUSTER ?=
# Where Snakemake runs the jobs: here, or on the cluster that profiles/$(CLUSTER) describes.
JOBS = --cores $(CORES)$(if $(CLUSTER), --cluster '$(CLUSTER)')
# GNU nproc counts the cores this process may use, but takes OpenMP's settings for a limit.
CORES ?= $(shell unset OMP_NUM_THREADS OMP_THREAD_LIMIT; nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PROFILES = $(sort $(basename $(notdir $(wildcard profiles/*.yml))))
IN_ENVIRONMENT = @sh ./environment.sh
# Each test process holds its own PyTorch, in one thread.
PYTEST = OMP_NUM_THREADS=1 sh ./environment.sh -m pytest -n $$(($(CORES) < 8 ? $(CORES) : 8))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'RUN=NAME                  make record: which run of recordings/runs.yml'
	@echo 'RUNS=FILE                 make record: other runs, as recordings/paper.yml'
	@echo 'PROFILE=quick|full|paper  how much the chapters compute (quick)'
	@echo 'LEDGER=FILE               make compare: another ledger than this build has made'
	@echo 'WHY=TEXT                  make reference: the reason, for the message of its commit'
	@echo 'CORES=N                   cores to use (all)'
	@echo 'THREADS=N                 threads of a chapter, part of what decides its numbers (1)'
	@echo 'CLUSTER=slurm             book, record: run the jobs there, see profiles/slurm/config.yaml'
	@echo 'VENV=DIR                  where the environment is made (.venv)'
	@echo 'PYTHON=COMMAND            the Python it is made with, 3.11 or newer (python3)'
	@echo 'TORCH_INDEX=cpu|ADDRESS   another index for torch and torchvision, see README.md'
	@echo 'UPGRADE=1                 make lock: move every package to its newest version'

book: profile cores ## run every chapter, check every claim, build the site in _build/html
	$(IN_ENVIRONMENT) -m latebook build --profile '$(PROFILE)' $(JOBS)$(if $(filter-out 1,$(THREADS)), --threads '$(THREADS)')

compare: profile ## hold the ledger, or LEDGER=FILE, against the committed reference
	$(IN_ENVIRONMENT) -m latebook compare --profile '$(PROFILE)' $(if $(LEDGER),--ledger '$(LEDGER)')

reference: why book ## commit the ledger as the reference of its profile, WHY="..."
	$(IN_ENVIRONMENT) -m latebook reference --profile '$(PROFILE)' --why "$$WHY"

record: cores ## make the recorded runs in results/ that are missing, or RUN=NAME anew
	$(IN_ENVIRONMENT) -m latebook record$(if $(RUN), $(RUN)) --runs '$(RUNS)' $(JOBS)

test: cores ## run the tests that take minutes
	@$(PYTEST) -m 'not slow and not site'
	@echo 'latephase: skipped what make test-slow (kills, sabotage, whole builds) and make test-site run'

test-site: ## run the tests of the built site in a browser, after make book
	$(IN_ENVIRONMENT) -m uv pip install --python python --quiet --require-hashes \
	    --target _build/tests-site --requirement tests/site/requirements.lock
	$(IN_ENVIRONMENT) -m pytest tests/site

test-slow: cores ## run the kills, the sabotage and the whole builds
	@$(PYTEST) -m slow

house: ## print the library's folders: lines, modules, and which imports from which
	$(IN_ENVIRONMENT) tests/house.py

links: ## ask for every external address that the book names; needs a network
	$(IN_ENVIRONMENT) .ci/links.py

lab: ## open JupyterLab on the chapters
	$(IN_ENVIRONMENT) -m jupyterlab book

environment: ## make the environment and nothing else
	$(IN_ENVIRONMENT) -c ''

lint: ## check the style of library, tests and notebooks
	$(IN_ENVIRONMENT) -m ruff check .
	$(IN_ENVIRONMENT) -m ruff format --check .

wheel: ## build the library's wheel, check it, run the README's example with it alone
	$(IN_ENVIRONMENT) .ci/wheel.py

chapter: ## lay the skeleton of a new chapter, NAME=some_name
	$(IN_ENVIRONMENT) .ci/chapter.py '$(NAME)'

audit: ## compare the pinned packages with the published advisories
	$(IN_ENVIRONMENT) .ci/audit.py

lock: ## renew requirements.lock and environment.yml from pyproject.toml
	@mkdir -p _build/lock && cp requirements.lock _build/lock
	$(IN_ENVIRONMENT) -m uv pip compile pyproject.toml --extra book --extra dev --universal \
	    --python-version 3.11 --generate-hashes --no-header --quiet $(if $(UPGRADE),--upgrade) \
	    --output-file _build/lock/requirements.lock
	@cp tests/site/requirements.lock _build/lock/site.lock
	$(IN_ENVIRONMENT) -m uv pip compile --group site --constraint _build/lock/requirements.lock \
	    --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet \
	    $(if $(UPGRADE),--upgrade) --output-file _build/lock/site.lock
	@{ printf '%s\n' '# Made by `make lock` from requirements.lock: the same versions for conda.' \
	    'name: latephase' 'channels: [conda-forge]' \
	    'dependencies:' '  - python >=3.11' '  - pip' '  - pip:'; \
	    sed -n 's/^\([a-z0-9].*\) \\$$/      - "\1"/p' _build/lock/requirements.lock; \
	    echo '      - "-e ."'; } > _build/lock/environment.yml
	@mv _build/lock/requirements.lock _build/lock/environment.yml .
	@mv _build/lock/site.lock tests/site/requirements.lock

clean: ## remove what was built, keep the environment and recorded results
	rm -rf _build .snakemake build .pytest_cache .ruff_cache

why:
	@[ -n "$$WHY" ] || { echo 'latephase: make reference asks for its reason, WHY="..."' >&2; exit 2; }

profile:
	@for known in $(PROFILES); do [ "$$known" != '$(PROFILE)' ] || exit 0; done; \
	echo 'latephase: unknown PROFILE=$(PROFILE); known: $(PROFILES)' >&2; exit 2

cores:
	@for number in 'CORES=$(CORES)' 'THREADS=$(THREADS)'; do case "$${number#*=}" in \
	''|0*|*[!0-9]*) echo "latephase: $$number is not a positive number" >&2; exit 2 ;; \
	esac; done
