# `make help` lists the targets. A fresh machine needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; call: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[nnunet,medsam,biomedparse,tracking,video,postgresql,ray,desk,openid,dev,docs]'
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## install the package and its tools into .venv

.PHONY: demo
demo: install ## adapt a segmenter on simulated echo; report in runs/demo/report.html
	$(BIN)/medfm-rl demo --out runs/demo

.PHONY: desk
desk: install ## review the masks of the demo in a browser; makes the demo where there is none
	@test -f runs/demo/quality/scores.json || $(BIN)/medfm-rl demo --out runs/demo
	$(BIN)/medfm-rl desk --new --store runs/demo/feedback.sqlite --scores runs/demo/quality --accepted \
		--run runs/demo/run --jobs runs/demo/jobs

.PHONY: test
test: lint types imports docs page unit ## everything the project tests

.PHONY: lint
lint: install ## code style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
# Bandit's rules for what strangers can reach; commands there are lists of words and never meet a shell.
	$(BIN)/ruff check --select S --ignore S101,S603,S608 medfm_rl/service medfm_rl/feedback

.PHONY: types
types: install ## static types of the package and the benchmarks
	$(BIN)/mypy

.PHONY: imports
imports: install ## who may import whom
	$(BIN)/lint-imports

.PHONY: docs
docs: install ## documentation, in docs/_build
	$(BIN)/sphinx-build --quiet -W --keep-going docs docs/_build

.PHONY: page
page: ## the desk's page: types of its scripts, and what runs without a browser
	@if command -v npm >/dev/null; then \
		npm --prefix web-checks ci --no-audit --no-fund --silent \
			&& npm --prefix web-checks run --silent types && npm --prefix web-checks run --silent test; \
	else \
		echo "the desk's page is not checked: Node 20 or newer and npm are missing (apt-get install nodejs npm)"; \
		test -z "$$CI"; \
	fi

# One thread a worker: the networks of the tests are tiny, and threads that wait for each other cost more than they bring.
# Each worker starts with one half of the tests in their order, so that what a file prepares is mostly prepared once.
.PHONY: unit
unit: install ## the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: audit
audit: install ## known weaknesses of what is installed; asks pypi.org
	$(BIN)/python -m pip freeze --exclude-editable | $(BIN)/pip-audit --progress-spinner off --no-deps --disable-pip --requirement /dev/stdin

.PHONY: clean
clean: ## remove what can be made again
	rm -rf $(VENV) docs/_build build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
