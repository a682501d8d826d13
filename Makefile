# `make demo` and `make test` are all the set-up there is; everything goes into .venv.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/newest.txt
OUT ?= mcr-lens-demo
SELECT ?= not slow
MINUTES ?= 30
SEED ?=
NOTEBOOKS ?= notebooks
DOCS_OPTIONS ?=
# The harness and Triton are tested with on the newest versions alone: elsewhere, TEST_GROUPS=test.
TEST_GROUPS ?= test harness kernels
BIN = $(VENV)/bin
# Two processes on two cores: their threads would only wait for each other.
QUIETLY = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: demo test test-all lint docs api dist mutants bench audit hashes clean fuzz

demo: $(VENV)/.demo
	$(BIN)/mcr-lens demo --out $(OUT)

test: $(VENV)/.test
	$(QUIETLY) $(BIN)/python -m pytest -q -p no:nbmake -n 2 --dist loadfile --no-loadscope-reorder -m "$(SELECT)"
	$(QUIETLY) $(BIN)/python -m pytest -q --nbmake -n 2 $(NOTEBOOKS)

# Repetition too: more seeds, families and sizes, simulations, trainings, killed sweeps: twice the time.
test-all:
	$(MAKE) test SELECT=

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes mcr_lens --ignoreexternal > $(VENV)/types.txt || \
		{ grep -v '^ *mcr_lens[a-z_.]*$$' $(VENV)/types.txt; exit 1; }  # every public type must be known

# The site, in docs/_build/html; warnings are errors. The code in its pages is run by `make test`.
docs: $(VENV)/.docs
	$(QUIETLY) $(BIN)/python -m sphinx -q -b html -W --keep-going $(DOCS_OPTIONS) docs docs/_build/html

# The written list of the public interface, which a test holds against the package.
api: $(VENV)/.test
	$(BIN)/python tests/release/public_api.py

# The sdist, and the wheel as it is built from the sdist.
dist: $(VENV)/.lint
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(QUIETLY) $(BIN)/python tests/release/check_dist.py dist

mutants: $(VENV)/.test
	$(BIN)/python tests/mutation/mutants.py --write

# Odd arguments at everything that is public, for so many minutes; SEED=... repeats a run.
fuzz: $(VENV)/.test
	$(BIN)/python -m fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/.test
	$(BIN)/python benchmarks/bench_measure.py --out benchmarks/results/measure.json
	$(BIN)/python benchmarks/bench_served.py --out benchmarks/results/served.json
	$(BIN)/python benchmarks/bench_growth.py --out benchmarks/results/growth.json
	$(BIN)/python benchmarks/bench_lens.py --out benchmarks/results/lens.json
	$(BIN)/python benchmarks/bench_watch.py --out benchmarks/results/watch.json
	$(BIN)/python benchmarks/tables.py

# Are there known holes in what the constraints pin? Asks PyPI; fails too if it cannot be asked.
audit: $(VENV)-tools/.ready
	$(VENV)-tools/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r $(CONSTRAINTS)

# What a user installs, pinned by the constraints, with the hash of every file on the index, for every platform.
hashes: $(VENV)-tools/.ready
	for made in newest lowest; do \
		$(VENV)-tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
			--custom-compile-command "make hashes" pyproject.toml --extra plots --extra notebook --extra probes \
			-c constraints/$$made.txt -o constraints/$$made.hashes.txt > /dev/null || exit 1; \
	done

clean:
	rm -rf .venv* dist build docs/_build docs/_generated $(OUT)

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

# Tools that only look at the constraints have an environment of their own.
$(VENV)-tools/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(VENV)-tools/bin/python -m pip install --quiet --disable-pip-version-check --group audit
	touch $@

$(VENV)/.docs: $(VENV)/.test
	$(PIP) --group docs
	touch $@
