# `make demo` and `make test` do all the set-up. They need Python 3.11 or later and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MINIMUM := .venv-minimum

.PHONY: help demo test test-fast test-minimum faults fuzz check format minimum licences sbom clean

help:
	@echo "make demo          fine-tune a small ViT on synthetic brain slices and show the resulting run folder"
	@echo "make test          run all tests"
	@echo "make test-fast     run the tests that do not train, serve or take long"
	@echo "make test-minimum  the same with the lowest versions of all dependencies (needs Python 3.11)"
	@echo "make faults        kill, starve and disturb all stages of the work 200 times, and compare (an hour)"
	@echo "make fuzz          read 600 damaged files of each kind that users hand in"
	@echo "make check         check format, lint, docstrings, spelling, types and import directions"
	@echo "make format        fix format and lint where that is safe"
	@echo "make minimum       find the lowest versions that pyproject.toml allows: constraints-minimum.txt"
	@echo "make licences      list the licences of all dependencies: docs/dependencies.md"
	@echo "make sbom          write the software bill of materials: build/sbom.cdx.json"
	@echo "make clean         remove the virtual environment and caches (runs/ stays)"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=python3.11 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Without the extras and the tools of development: 95 packages instead of 211, 6.7 GB instead of 7.7 (4.3 of them CUDA).
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=python3.11 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable .
	touch $@

# All extras, whose packages are listed by `make licences` and `make sbom`.
$(VENV)/.complete: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@

demo: $(VENV)/.base
	$(BIN)/hf-medtl train demo --output_dir runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not real and not browser and not gpu"

test-minimum:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11) and 'Python 3.11 is needed: make PYTHON=python3.11 test-minimum')"
	test -x $(MINIMUM)/bin/python || $(PYTHON) -m venv $(MINIMUM)
	$(MINIMUM)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints-minimum.txt --editable ".[test]"
	$(MINIMUM)/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not real and not browser and not gpu"

faults: $(INSTALLED)
	HF_MEDTL_FAULTS=$${HF_MEDTL_FAULTS:-200} $(BIN)/python -m pytest -n 2 --dist loadgroup tests/faults

fuzz: $(INSTALLED)
	HF_MEDTL_FUZZ=$${HF_MEDTL_FUZZ:-600} $(BIN)/python -m pytest -n 2 --dist worksteal -s tests/fuzz

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell hf_medtl model_cards tests recipes benchmarks spaces docs *.md
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_words.py tests/test_public_names.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

minimum: $(INSTALLED)
	$(BIN)/python -m tests.support.dependencies minimum

licences sbom: $(VENV)/.complete
	$(BIN)/python -m tests.support.dependencies $@

clean:
	rm -rf $(VENV) $(MINIMUM) build .mypy_cache .pytest_cache .ruff_cache *.egg-info
