# make lab   a fresh machine to JupyterLab on the start notebook
# make test  the whole test suite, nothing installed before
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A CPU build of torch from another index (WORKBENCH_TORCH_INDEX=URL), or a version of your own (WORKBENCH_TORCH=torch==2.12.*).
WORKBENCH_TORCH ?= torch==2.13.0
TORCH_FLAGS := $(if $(WORKBENCH_TORCH_INDEX),--index-url $(WORKBENCH_TORCH_INDEX),)
JOBS ?= 2

.PHONY: lab test test-gpu check venv clean

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.12 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check -q $(TORCH_FLAGS) '$(WORKBENCH_TORCH)'
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[all,dev]'
	@touch $@

lab: venv
	@$(BIN)/workbench lab

test: venv
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'not gpu' $(PYTEST_ARGS)

# On a machine with an NVIDIA GPU; PYTHON_GPU may name an interpreter that has torch with CUDA already.
PYTHON_GPU ?= $(BIN)/python
test-gpu:
	@$(PYTHON_GPU) -m pytest -m gpu -p no:cacheprovider $(PYTEST_ARGS)

check: venv
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
