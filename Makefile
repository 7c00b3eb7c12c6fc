# Two commands matter: `make serve` and `make test`. Both set up what they need in $(VENV), once.
# Variables to set on the command line: ARGS (passed on), PYTHON, VENV.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
INPUTS := pyproject.toml constraints.txt
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help serve test quick lint format bench constraints install develop clean FORCE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  make serve ARGS="--port 5007"    passes on options; likewise for test and bench'

serve: $(VENV)/.installed ## Start the workbench on http://127.0.0.1:5006
	@exec $(VENV)/bin/workbench serve $(ARGS)

test: $(VENV)/.installed-all ## Run the tests (installs what they need, a browser included)
	@browser=$$(.ci/browser $(PY)) || exit 1; export WORKBENCH_CHROMIUM="$$browser"; ran=; status=0; \
	tests() { "$$@" $(ARGS) && ran=yes || { code=$$?; [ $$code = 5 ] || status=$$code; }; }; \
	tests env OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --part together; \
	tests $(PY) -m pytest --part alone; \
	[ $$status != 0 ] || [ "$$ran" ] || status=5; exit $$status

quick: $(VENV)/.installed-all ## Run the tests one runs by habit, two at a time: no browser, no notebooks, no benchmarks
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not browser and not jupyter and not slow" $(ARGS)

lint: $(VENV)/.installed-all ## Check style, formatting and types
	@status=0; \
	$(PY) -m ruff check || status=1; \
	$(PY) -m ruff format --check || status=1; \
	$(PY) -m mypy || status=1; \
	exit $$status

format: $(VENV)/.installed-all ## Sort imports, mend what can be mended, format
	$(PY) -m ruff check --fix --exit-zero
	$(PY) -m ruff format

bench: $(VENV)/.installed-all ## Print each speed beside its peer's
	@browser=$$(.ci/browser $(PY)) && WORKBENCH_CHROMIUM="$$browser" exec $(VENV)/bin/workbench bench $(ARGS)

constraints: $(VENV)/.installed-all ## Pin what is installed: constraints.txt and environment.yml
	$(PY) .ci/pins.py

install: $(VENV)/.installed ## Install what `make serve` needs, nothing more

develop: $(VENV)/.installed-all ## Install everything: tests, peers and tools

clean: ## Remove caches and build products; the installed packages and your runs stay
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .jupyter-test
	find . -path './.?*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# pip runs only when a stamp is older than what it was made from, or the checkout has moved
# (the installed commands name its folder).
ifneq ($(shell cat $(VENV)/.checkout 2>/dev/null),$(CURDIR))
MOVED := FORCE
endif

$(VENV)/.installed: $(INPUTS) $(PY) $(MOVED)
	$(PIP_INSTALL) --editable '.[app,jupyter]'
	@printf '%s\n' '$(CURDIR)' > $(VENV)/.checkout && touch $@

$(VENV)/.installed-all: $(INPUTS) $(PY) $(MOVED)
	$(PIP_INSTALL) --editable '.[app,jupyter,test,peers,dev]'
	@printf '%s\n' '$(CURDIR)' > $(VENV)/.checkout && touch $(VENV)/.installed $@

$(PY):
	@for python in '$(PYTHON)' python3.14 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "The workbench needs Python 3.11 or newer, but '$(PYTHON)' is `$(PYTHON) --version 2>&1`." >&2; \
	  echo "Install one from your system or https://www.python.org, then: make PYTHON=/path/to/python3 ..." >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with `$$found --version`"; \
	"$$found" -m venv '$(VENV)' || { rm -f '$@'; exit 1; }

FORCE:
