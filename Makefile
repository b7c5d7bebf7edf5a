# make install: .venv with the pinned dependencies.   make demo: plan, show, verify and train examples/gpt.py.

PYTHON ?= python3
STEPS ?= 20
OUT ?= out
BIN := .venv/bin
SOURCES := partitioner runtime cutlass_ops tools examples tests

.PHONY: install demo test readme parity cases habits disturbed kernels frameworks apps quick-apps lint types gallery bench

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[data,hf,serve,dev]"
	touch $@

demo: install
	mkdir -p $(OUT)
	$(BIN)/partitioner plan examples/gpt.py:model --cluster local-cpu --global-batch 16 --pin tp=2 --pin pp=2 -o $(OUT)/plan.json
	$(BIN)/partitioner show $(OUT)/plan.json
	$(BIN)/partitioner show $(OUT)/plan.json --svg $(OUT)/plan.svg --html $(OUT)/plan.html --trace $(OUT)/step.json
	$(BIN)/partitioner verify $(OUT)/plan.json
	$(BIN)/partitioner run $(OUT)/plan.json --steps $(STEPS) --report $(OUT)/report.json
	$(BIN)/partitioner compare $(OUT)/plan.json $(OUT)/report.json

# what stays in one process or waits for a command's, first, two at a time; then what starts ranks of its own
PURE := $(patsubst %,tests/tools/%,test_commands.py test_streams.py run compare configs dialects figures fit kernels measured_kernels models plan show \
	validate verify \
	watch test_configs.py) tests/runtime/data tests/runtime/dry_run tests/runtime/verify tests/partitioner tests/cutlass_ops tests/test_house.py tests/test_facts.py

QUICK := not readme and not parity and not kernels and not habits and not disturbed and not frameworks and not apps

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "$(QUICK)" $(PURE)
	$(BIN)/python -m pytest -m "$(QUICK)" $(PURE:%=--ignore=%)

# what the README shows, run as it stands there
readme: install
	$(BIN)/python -m pytest -m readme

# every model under every family of plans, in shards: one that has passed on these files does not run again
SHARDS := $(patsubst %,of_%_,example gpt2 llama qwen3 mistral opt gpt_neox phi3 gemma2 gemma3_text mixtral bert t5 vit whisper \
	falcon bloom gptj bart roberta uneven) random memory
PASSED := $(OUT)/parity/$(shell git rev-parse --short HEAD)-$(shell git diff HEAD | cksum | cut -d' ' -f1)
SELECT_random := tests/tools/verify/test_random_plans.py
COUNTED := tests/parity/test_memory.py tests/runtime/dry_run/test_counted_peak.py
SELECT_memory := -n 2 $(COUNTED)
APART := $(addprefix --ignore=,tests/parity/test_parity.py $(SELECT_random) $(COUNTED))
SELECT_cases_of_one_process := -n 2 --dist loadfile $(PURE) $(APART)
SELECT_cases_of_several := tests $(APART) $(PURE:%=--ignore=%)

parity: $(SHARDS:%=$(PASSED)/%)

# all cases of tests of which `make test` runs some
cases: $(PASSED)/cases_of_one_process $(PASSED)/cases_of_several

$(PASSED)/%: .venv/installed
	$(BIN)/python -m pytest -m parity $(or $(SELECT_$*),tests/parity/test_parity.py -k $*)
	@mkdir -p $(@D) && touch $@

# what traces in one process and waits for ranks, two at a time; then what starts commands
habits: install
	$(BIN)/python -m pytest -n 2 tests/habits/test_habits.py
	$(BIN)/python -m pytest tests/habits/test_doors.py

# runs that are left, started by others, and gone on with other ranks
disturbed: install
	$(BIN)/python -m pytest -m disturbed

kernels: install
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[cutlass]"
	$(BIN)/python -m pytest -m kernels

# what is written for other frameworks, read by their own parsers
frameworks: install
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[frameworks]"
	$(BIN)/python -m pytest -m frameworks tests/tools/configs

# four applications from plain models to answers; their figures
apps: install
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[apps]"
	for name in text code translation conversation; do \
	  OMP_NUM_THREADS=1 $(BIN)/python examples/$$name/run.py --out $(OUT)/apps/$$name || exit 1; done
	$(BIN)/python examples/application.py table $(OUT)/apps

# the same in a minute each, on tiny models: all of it runs, little is learnt
quick-apps: install
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[apps]"
	$(BIN)/python -m pytest -m apps tests/test_applications.py

lint: install
	$(BIN)/ruff check $(SOURCES)

types: install
	$(BIN)/pyright

gallery: install
	$(BIN)/python -m tools.bench.gallery docs/gallery > /dev/null

bench: install
	$(BIN)/python -m tools.bench.runtime
