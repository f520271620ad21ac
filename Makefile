# `make demo` and `make test` need Python 3.11+ and a package registry, nothing else; each makes its own .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest supported Transformers is written once, in pyproject.toml.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
# Modules are compiled when they are first imported: all of those that are installed would take three times as long.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE :=
# The models of the tests are tiny: a second thread costs more than it gives.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
# What has to hold at both ends of the supported range: the families, the surgery, and the journey through the Trainer.
CONTRACTS = tests/foundation/test_families.py tests/shrink/test_surgery.py tests/shrink/test_prunable_checkpoints.py tests/learn/test_gates.py tests/callback/test_callback.py
TESTS ?=
# One process per core, at most four; each takes the next tests of its half, then of the other's.
PYTEST := -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal
# Pins that belong to one version of Transformers; another version brings its own.
UNPINNED := ^(transformers|tokenizers|huggingface_hub|datasets|sentence-transformers|setfit|trl|peft)==

# Families whose pruned classes run through the host's own tests; none is all.
FAMILIES ?=

# Where the documentation is built.
SITE := build/site

# Environments of the journey: one with the wheel, and those of users who have torch or onnxruntime, and not this package.
JOURNEY := build/journey
PIP_INSTALL = $(PIP) --constraint constraints.txt

.PHONY: demo test test-slow check static format install docs journey test-oldest test-newest test-host contracts-oldest clean help

help:
	@echo "make demo         fine-tune, prune, search, save and reload a real BERT; a few minutes on 2 cores"
	@echo "make test         the tests, but for those that take seconds each"
	@echo "make test-slow    those: examples, benchmarks, other processes, runs from training to certificate"
	@echo "make check        formatting, lint, types and all tests; what CI runs"
	@echo "make docs         the documentation site, in $(SITE); a warning is an error"
	@echo "make journey      a model from the built wheel to its users, each in a clean environment; minutes to install"
	@echo "make test-oldest  the suite on the oldest supported Transformers ($(OLDEST))"
	@echo "make test-newest  the suite on the newest Transformers of the registry"
	@echo "make test-host    the tests of Transformers on our classes; minutes per family, FAMILIES=\"bert t5\""

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/python examples/demo.py $(ARGS)

docs: install
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . $(SITE)

$(JOURNEY)/.installed: pyproject.toml constraints.txt
	for name in wheel torch onnx; do $(PYTHON) -m venv --clear $(JOURNEY)/$$name || exit 1; done
	$(JOURNEY)/torch/bin/python $(PIP_INSTALL) torch transformers
	$(JOURNEY)/onnx/bin/python $(PIP_INSTALL) onnxruntime transformers
	@touch $@

# The wheel is built from a copy: what an earlier build left in build/lib would be packed, too.
journey: install $(JOURNEY)/.installed
	rm -rf $(JOURNEY)/source $(JOURNEY)/dist
	mkdir -p $(JOURNEY)/source
	cp -r hf_headprune pyproject.toml README.md LICENSE $(JOURNEY)/source
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(JOURNEY)/dist $(JOURNEY)/source
	$(JOURNEY)/wheel/bin/python $(PIP_INSTALL) "$$(ls $(JOURNEY)/dist/*.whl)[onnx]" pytest
	$(JOURNEY)/wheel/bin/python $(PIP_INSTALL) --force-reinstall --no-deps $(JOURNEY)/dist/*.whl
	$(TEST_ENV) HEADPRUNE_JOURNEY=$(abspath $(JOURNEY)) $(BIN)/python -m pytest tests/test_journey.py tests/shrink/test_remote_code.py

test: install
	$(TEST_ENV) $(BIN)/python $(PYTEST) $(or $(TESTS),-m "not slow")

test-slow: install
	$(TEST_ENV) $(BIN)/python $(PYTEST) -m slow

static: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: static test-slow test

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What does not depend on the version of Transformers is taken from .venv.
.venv-oldest/.installed: REQUIREMENT = transformers==$(OLDEST)
.venv-newest/.installed: REQUIREMENT = transformers
.venv-oldest/.installed .venv-newest/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	grep -vE '$(UNPINNED)' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python $(PIP) --constraint $(@D)/constraints.txt --upgrade "$(REQUIREMENT)"
	@touch $@

test-oldest test-newest: test-%: .venv-%/.installed
	$(TEST_ENV) .venv-$*/bin/python $(PYTEST) $(TESTS)

contracts-oldest: .venv-oldest/.installed
	$(TEST_ENV) .venv-oldest/bin/python $(PYTEST) -m "not slow" $(CONTRACTS)

# Downloads the source distribution of the installed Transformers, whose tests are run and never committed.
test-host: install
	$(TEST_ENV) $(BIN)/python -m tools.host_suite $(FAMILIES)

clean:
	rm -rf .venv .venv-oldest .venv-newest .pytest_cache .ruff_cache .mypy_cache .hypothesis build demo-output
