# make demo   a global embedding raster (Cloud-Optimized GeoTIFF) and its picture, in demo/
# make test   lint, types and the whole test suite
# make quick  the tests that a change outside kernels/ and csrc/cuda needs, in minutes
#
# Each makes its own environment in .venv when there is none, and installs what is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')
SOURCES := $(CXX_SOURCES) $(shell find satclip_engine kernels training -name '*.py' -o -name '*.pyi') \
           setup.py CMakeLists.txt $(wildcard cmake/*.cmake) pyproject.toml
PARALLEL := --numprocesses=auto --dist=worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# mypy does not follow setuptools' package-dir: it checks a tree of links in which kernels and training lie
# where they are installed. The messages name the files themselves.
TREE := build/mypy
define TYPES
rm -rf $(TREE) && mkdir -p $(TREE)/satclip_engine
ln -s "$(CURDIR)"/satclip_engine/* "$(CURDIR)"/kernels "$(CURDIR)"/training $(TREE)/satclip_engine/
MYPYPATH=$(TREE) $(BIN)/mypy > $(TREE)/report; status=$$?; \
  sed -e 's,^$(TREE)/,,' -e 's,^satclip_engine/kernels/,kernels/,' -e 's,^satclip_engine/training/,training/,' \
    $(TREE)/report; exit $$status
endef

.PHONY: demo test lint unit quick bench clean

demo: $(VENV)/installed
	$(BIN)/satclip-grid demo/world.tif --overwrite
	@echo "Look at demo/world.png; open demo/world.tif in QGIS (GDAL 3.7 or newer, for signed bytes)."

test: lint unit

lint: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@$(TYPES)

unit: $(VENV)/developed
	$(BIN)/pytest $(PARALLEL) $(PYTEST_ARGS)

quick: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/pytest $(PARALLEL) -m "not triton and not gpu_tools" $(PYTEST_ARGS)

bench: $(VENV)/developed
	$(BIN)/satclip-bench points
	$(BIN)/satclip-bench grid

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

# The package as a user gets it, without torch.
$(VENV)/installed: $(BIN)/python constraints.txt $(SOURCES)
	@echo "Installing satclip-engine into $(VENV), a minute or so …"
	@test -f $(VENV)/developed || $(PIP) .
	@mkdir -p demo
	@touch $@

# Editable, with everything that the tests need.
$(VENV)/developed: $(BIN)/python constraints.txt $(SOURCES)
	@echo "Installing satclip-engine and its development tools (1.7 GB, PyTorch among them) into $(VENV), minutes …"
	@$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/installed
	@mkdir -p demo

clean:
	rm -rf $(VENV) build dist demo *.egg-info satclip_engine/_C*.so
