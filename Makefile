# `make demo` and `make test` are all the set-up there is; everything goes into .venv.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/newest.txt
OUT ?= mcr-lens-demo
SELECT ?=
# The harness is compared with on the newest versions alone: elsewhere, TEST_GROUPS=test.
TEST_GROUPS ?= test harness
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: demo test lint notebooks wheel bench clean

demo: $(VENV)/.demo
	$(BIN)/mcr-lens demo --out $(OUT)

test: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "$(SELECT)"
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --nbmake -n 2 notebooks

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.test
	$(BIN)/python benchmarks/bench_measure.py --out benchmarks/results/measure.json
	$(BIN)/python benchmarks/bench_served.py --out benchmarks/results/served.json
	$(BIN)/python benchmarks/bench_growth.py --out benchmarks/results/growth.json
	$(BIN)/python benchmarks/bench_lens.py --out benchmarks/results/lens.json
	$(BIN)/python benchmarks/bench_watch.py --out benchmarks/results/watch.json
	$(BIN)/python benchmarks/tables.py

wheel: $(VENV)/.lint
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv* dist build $(OUT)

# Exact versions come from the constraints file. torch goes first, alone: pip then keeps the build that
# it finds (a CPU wheel where PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS offers one).
$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mcr_lens needs Python 3.11 or newer; run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml $(CONSTRAINTS)
	$(PIP) -e '.[plots]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e '.[notebook]' $(addprefix --group ,$(TEST_GROUPS))
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) --group lint --group dev
	touch $@
