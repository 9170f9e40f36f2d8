PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bom demo docs lint locked rooms test test-min test-min-torch test-other setup setup-dev setup-min-torch setup-other clean

# The main job on scikit-learn's digits: weak teacher, strong student, ceiling, three seeds, one table.
demo: setup
	$(BIN)/python -m w2s_plugins.demo

# The documents as a site, in output/site.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The packages of requirements.txt as they are now, all that they need included, each with its SHA-256.
locked: setup-dev
	mkdir -p output
	$(BIN)/python -m uv pip compile --quiet --generate-hashes --python $(BIN)/python requirements.txt -o output/locked.txt

# These as a bill of materials for a release, in CycloneDX.
bom: locked
	PYTHONWARNINGS=ignore $(BIN)/python -m uv tool run --quiet --from 'cyclonedx-bom>=7' cyclonedx-py requirements --pyproject pyproject.toml \
		--mc-type application --output-reproducible -o output/bom.json output/locked.txt

# Style, and the types of what Python users see.
lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# How large each room of the package is, beside its guide, and its growth since the last tag.
rooms: setup-dev
	$(BIN)/python -m tests.rooms

# Both, and every test, slow ones included.
test: lint rooms
	$(BIN)/python -m pytest

# What touches the Hub and timm, with the oldest versions of them; all else is taken from the other environment.
OLDEST = tests/test_versions.py tests/hub/test_hub.py tests/models/test_interface.py \
	tests/run/test_checkpoint.py
test-min: $(VENV)-min/.installed
	$(VENV)-min/bin/python -m pytest $(OLDEST)

# The same and what touches torch, with the oldest torch too: 4 GB to fetch, 7 GB on the disk.
test-min-torch: setup-min-torch
	$(VENV)-min-torch/bin/python -m pytest $(OLDEST) tests/training/test_step.py tests/training/test_fsdp.py tests/losses/test_golden.py

# The quick tests on another Python: make test-other OTHER=python3.10. 4 GB to fetch, 7 GB on the disk.
OTHER ?= python3.13
OTHER_TESTS ?= tests
VENV_OTHER = $(VENV)-$(notdir $(OTHER))
test-other: setup-other
	$(VENV_OTHER)/bin/python -m pytest -m "not slow" $(OTHER_TESTS)

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

setup-min-torch: $(VENV)-min-torch/.installed

setup-other: $(VENV_OTHER)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Bytecode of what is imported is written then; most of it never is.
$(VENV)/.installed-dev: pyproject.toml setup.py $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $@

# The packages of an environment come before those of the environments that its .pth file names.
purelib = $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

$(VENV)-min/.installed: requirements-min.txt $(VENV)/.installed-dev
	$(PYTHON) -m venv $(VENV)-min
	echo "$(call purelib,$(VENV))" > "$(call purelib,$(VENV)-min)/newer.pth"
	$(VENV)-min/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed --no-deps \
		-r requirements-min.txt
	$(VENV)-min/bin/python -m pip install --quiet --disable-pip-version-check httpx typer-slim shellingham
	touch $@

$(VENV)-min-torch/.installed: requirements-min-torch.txt $(VENV)-min/.installed
	$(PYTHON) -m venv $(VENV)-min-torch
	$(BIN)/python -m uv pip install --quiet --no-cache --python $(VENV)-min-torch -r requirements-min-torch.txt
	(echo "$(call purelib,$(VENV)-min)"; echo "$(call purelib,$(VENV))") > "$(call purelib,$(VENV)-min-torch)/newer.pth"
	touch $@

$(VENV_OTHER)/.installed: $(VENV)/.installed-dev
	rm -rf $(VENV_OTHER)
	$(BIN)/python -m uv venv --quiet --python $(OTHER) $(VENV_OTHER)
	$(BIN)/python -m uv pip install --quiet --no-cache --python $(VENV_OTHER) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* output
