PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOMS := cli convert demo plan runtime tree verify
SOURCES := $(foreach room,$(ROOMS),$(wildcard $(room)/*.py))

.PHONY: demo test check bench coverage docs clean

demo: $(VENV)/installed ## fold the model that comes with prefold, verify it, print the report
	$(BIN)/prefold demo

test: $(VENV)/installed check ## lint, types, all tests
	$(BIN)/pytest --numprocesses 2

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(ROOMS:%=-p prefold.%)

bench: $(VENV)/installed ## measure, and write docs/benchmarks.md
	$(BIN)/python benchmarks/run.py

coverage: $(VENV)/installed ## fold a small model of every type, and write docs/coverage.md and cli/coverage.json
	$(BIN)/python -m benchmarks.coverage

docs: $(VENV)/installed ## write docs/cli.md from the commands' own help
	$(BIN)/python docs/write_cli.py

# Strict mode lets mypy see an editable install, but links files one by one: a new file needs a new install.
$(VENV)/installed: pyproject.toml constraints.txt $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
