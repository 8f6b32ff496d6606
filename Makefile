# make demo   sets everything up, trains without and with descriptions on a made-up corpus, compares: five minutes
# make test   the quick tests; make test-slow: all of them; make check: style and types
# make bench  times and memory of every stage, of a small model: a few minutes

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Most tests are one process on one thread.
WORKERS := 2
SHELL := /bin/bash

.PHONY: setup demo test test-slow fuzz check format bench clean

setup: $(VENV)/done

$(VENV)/done: requirements.txt requirements/dev.txt requirements/pose.txt requirements/rgb.txt requirements/tables.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements/dev.txt
	touch $@

demo: setup
	$(RUN) -m tools.demo

test: setup
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu" --durations=10

test-slow: setup
	$(RUN) -m pytest

# Coverage-guided, a minute each; needs atheris==3.0.0, which few platforms have.
fuzz: setup
	for target in descriptions alignment labels poses weights states; do $(RUN) -m tests.helpers.fuzz $$target 60 || exit 1; done

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup
	$(RUN) -m tools.benchmark --size small --repeats 3 --threads 1 --clock cpu --json benchmark.json

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf sample output_demo benchmark.json
