PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-min setup setup-dev clean

# The main job on scikit-learn's digits: weak teacher, strong student, ceiling, three seeds, one table.
demo: setup
	$(BIN)/python -m w2s_plugins.demo

# ruff and every test, slow ones included.
test: setup-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

# What touches the Hub and timm, with the oldest versions of them; all else is taken from the other environment.
test-min: setup-dev $(VENV)-min/.installed
	$(VENV)-min/bin/python -m pytest tests/test_versions.py tests/test_hub.py tests/test_hub_faults.py \
		tests/models/test_interface.py tests/test_checkpoint.py

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# its own packages come before those of the other environment
$(VENV)-min/.installed: requirements-min.txt $(VENV)/.installed-dev
	$(PYTHON) -m venv $(VENV)-min
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > newest.pth
	mv newest.pth "$$($(VENV)-min/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(VENV)-min/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed --no-deps \
		-r requirements-min.txt
	$(VENV)-min/bin/python -m pip install --quiet --disable-pip-version-check httpx typer-slim shellingham
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-min output
