# make demo   sets everything up, trains on the sample corpus with descriptions, evaluates: five to ten minutes
# make test   the quick tests; make test-slow: all of them; make check: style and types
# make bench  time and memory of every stage, with a small model

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := output_demo
# Most tests are one process on one thread.
WORKERS := 2
SHELL := /bin/bash

.PHONY: setup demo test test-slow fuzz check format bench clean

setup: $(VENV)/done

$(VENV)/done: requirements.txt requirements-dev.txt requirements-pose.txt requirements-rgb.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@

sample/sample_corpus.json: | setup
	$(RUN) sample_data.py --out sample

demo: setup sample/sample_corpus.json
	$(RUN) fine_tuning.py --root sample --use_descriptions $(DEMO_FLAGS) --output_dir $(DEMO) --resume auto
	$(RUN) fine_tuning.py --root sample --use_descriptions $(DEMO_FLAGS) --output_dir $(DEMO) \
	    --finetune $(DEMO)/best_checkpoint.pth --eval
	@echo "The sentences are in $(DEMO)/test_predictions.jsonl, the scores in $(DEMO)/test_metrics.json,"
	@echo "the curves in $(DEMO)/log.txt, the weights in $(DEMO)/best_checkpoint.pth."

# A small model: the released weights have --hidden_dim 256 and need a GPU.
DEMO_FLAGS := --description_alignment 0.3 --hidden_dim 32 --epochs 8 --warmup-epochs 1 --batch-size 8 \
    --gradient-accumulation-steps 1 --dtype fp32 --num_workers 1 --num_beams 2 --max_new_tokens 40

test: setup
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-slow: setup
	$(RUN) -m pytest

# Coverage-guided, a minute each; needs atheris==3.0.0, which few platforms have.
fuzz: setup
	for target in descriptions alignment labels poses weights states; do $(RUN) tests/fuzz.py $$target 60 || exit 1; done

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup
	$(RUN) benchmark.py --size small --repeats 3 --threads 1 --clock cpu --json benchmark.json

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf sample $(DEMO) benchmark.json
