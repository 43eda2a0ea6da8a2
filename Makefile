# make demo: set up and train RST. make test: set up, lint, type-check and test. Both need Python 3.11 or newer.
PYTHON ?= python3
DEVICE ?= cpu
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint setup lock clean

demo: $(READY)
	$(BIN)/python -m sam_bench optimizer=rst schedule=linear

test: lint
	SAM_BENCH_TEST_DEVICE=$(DEVICE) $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

# uv, itself pinned in the lock, installs in seconds what pip takes minutes for
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement .venv/uv.lock
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes --requirement requirements.lock
	touch $@

# every version and hash, for all platforms, from the lower bounds in pyproject.toml
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --extra test \
		--upgrade --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv build *.egg-info
