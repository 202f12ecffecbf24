# `make demo` and `make test` do all of their own set-up on a machine that has Python 3.11-3.13, make and a C++ compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
GPAW   := $(VENV)/.gpaw
REMOTE := $(VENV)/remote

.PHONY: install dft demo test cluster remote lint slow clean

install: $(STAMP)

# torch comes first and pinned, so that no other package's open range brings in a different build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

dft: $(GPAW)

# GPAW has no wheel: it is compiled here, without system libraries, by the settings in examples/gpaw_siteconfig.py.
$(GPAW): $(STAMP) examples/gpaw_siteconfig.py
	GPAW_CONFIG=$(CURDIR)/examples/gpaw_siteconfig.py $(BIN)/python -m pip install -q -c constraints.txt --no-binary gpaw gpaw
	touch $@

demo: dft
	$(BIN)/hullseeker demo

# Two files at a time; those of whole searches, the longest, come first.
test: dft lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/workflows tests

# Searches by qlaunch through a Slurm of one node; and on a MongoDB, if MONGODB_URI names one. What cannot run is skipped.
cluster: install
	$(BIN)/python -m pytest tests/cluster -m "slurm or mongo"

# Searches by jobflow-remote. It wants an older pymongo: an environment that sees all of $(VENV), but for what differs.
remote: $(REMOTE)/.installed
	$(REMOTE)/bin/python -m pytest tests/cluster tests/workflows -m remote

$(REMOTE)/.installed: $(STAMP) constraints-remote.txt
	$(BIN)/python -m venv --clear --without-pip $(REMOTE)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $(REMOTE)/main.pth
	mv $(REMOTE)/main.pth $(REMOTE)/lib/python*/site-packages
	$(REMOTE)/bin/python -m pip install -q -c constraints-remote.txt jobflow-remote
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint acnn csp makers workflows
	$(BIN)/codespell

slow: dft
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
