# Each target works alone on a fresh clone: the first one called creates .venv and installs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := bundles/resnet3d_classification
RUN := $(BIN)/python -m monai.bundle run --bundle_root $(BUNDLE) --output_dir demo --model_dir demo/models
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: demo test lint bench notebooks clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' Makefile

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[track,test,notebooks]'
	touch $@

## make demo       train, evaluate and predict the main bundle on data generated locally
demo: $(VENV)/installed
	$(RUN) --config_file $(BUNDLE)/configs/train.json --max_epochs 40
	$(RUN) --config_file "['$(BUNDLE)/configs/train.json','$(BUNDLE)/configs/evaluate.json']"
	$(RUN) --config_file $(BUNDLE)/configs/inference.json --output_dir demo/predicted
	@echo
	@echo "Report: demo/report.html   metrics with intervals: demo/metrics.json   predictions: demo/predicted/predictions.csv"

## make test       the test suite, in two processes
test: $(VENV)/installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal --maxfail 30  # their threads share cores: no busy waiting

## make lint       style, types and the size limits
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## make bench      speed against stock MONAI and Keras on this machine, as tables (idle machine, about 45 minutes)
bench: $(VENV)/installed
	$(BIN)/python tests/benchmarks/bench_cache.py
	$(BIN)/python tests/benchmarks/bench_training.py
	$(BIN)/python tests/benchmarks/bench_swin.py
	$(BIN)/python tests/benchmarks/bench_segmentation.py
	$(BIN)/python tests/benchmarks/bench_inference.py
	$(BIN)/python tests/benchmarks/bench_metrics.py
	$(BIN)/python tests/benchmarks/bench_dicom.py
	$(BIN)/python tests/benchmarks/bench_dicom_write.py
	$(BIN)/python tests/benchmarks/bench_keras.py

## make notebooks  execute the notebooks and write them as .ipynb with their outputs; a few minutes
notebooks: $(VENV)/installed
	$(BIN)/python notebooks/build.py

## make clean      remove the environment and what the demo wrote
clean:
	rm -rf $(VENV) demo
