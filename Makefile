# make demo: set up and train RST. make test: set up, lint, type-check and test. make bench: the speed tables.
# make docs: the site. make pages: the pages of the measured results. make tables: every experiment with the
# smoke protocol, and its page. All need Python 3.11 or newer.
PYTHON ?= python3
DEVICE ?= cpu
BIN := .venv/bin
READY := .venv/.ready

EXPERIMENTS ?= rst_schedules rst_main ssam_sparsity vsam_main imagenet frontier claims tuning

.PHONY: demo test docs pages tables lint bench bench-cpu bench-cuda setup lock clean

demo: $(READY)
	$(BIN)/python -m sam_bench optimizer=rst schedule=linear

# all tests, in a copy of the tree to which the example method of docs/extending.md is added;
# to test the tree itself: .venv/bin/python -m pytest -n auto
# one process per core with one thread each, since threads of several processes would wait for each other
test: lint
	OMP_NUM_THREADS=1 SAM_BENCH_TEST_DEVICE=$(DEVICE) $(BIN)/python -m tests.recipe -n auto --dist worksteal

# the site, in docs/_build/html
docs: $(READY)
	$(BIN)/python -m sam_bench.catalogue > docs/methods.md
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

# rebuilds the pages of the committed results; the output is byte for byte the same
pages: $(READY)
	$(BIN)/python -m sam_bench.report experiments

# every experiment with the smoke protocol, and a page of each: minutes on two CPU cores, in runs/smoke/
tables: $(READY)
	mkdir -p runs/smoke
	test -d runs/smoke/images || $(BIN)/python -m sam_bench.data.digits runs/smoke/images
	for name in $(EXPERIMENTS); do \
		root=; test $$name != imagenet || root=dataset.root=runs/smoke/images; \
		$(BIN)/python -m sam_bench -m +experiment=$$name protocol=smoke $$root > runs/smoke/$$name.log || exit; \
		$(BIN)/python -m sam_bench.status +experiment=$$name protocol=smoke $$root | tail -2; \
	done
	test ! -d runs/smoke/tuning || $(BIN)/python -m sam_bench.choose runs/smoke/tuning
	$(BIN)/python -m sam_bench.report runs/smoke

# speed tables and plots: about twenty minutes on two CPU cores
RESULTS ?= bench/$(DEVICE)
FAST := trainer.device=cuda trainer.precision=bf16 trainer.deterministic=false
bench: bench-$(DEVICE)
	$(BIN)/python -m benchmarks.plot $(RESULTS)

bench-cpu: $(READY)
	$(BIN)/python -m benchmarks.step trainer.device=cpu --out $(RESULTS)/step-small_resnet.csv
	$(BIN)/python -m benchmarks.sparse trainer.device=cpu --out $(RESULTS)/sparse.csv
	$(BIN)/python -m benchmarks.ladder --device cpu --out $(RESULTS)/ladder.csv
	$(BIN)/python -m benchmarks.startup --device cpu --out $(RESULTS)/startup.csv
	$(BIN)/python -m benchmarks.scaling trainer.device=cpu --out $(RESULTS)/scaling.csv
	$(BIN)/python -m benchmarks.loader --device cpu --workers 0 1 2 --out $(RESULTS)/loader.csv
	$(BIN)/python -m benchmarks.seeds trainer.device=cpu --seeds 1 2 --models small_resnet --out $(RESULTS)/seeds.csv

bench-cuda: $(READY)
	for net in resnet18 wrn28_10; do $(BIN)/python -m benchmarks.step model=$$net $(FAST) trainer.compile=true \
		--steps 40 --workers 8 --out $(RESULTS)/step-$$net.csv || exit; done
	$(BIN)/python -m benchmarks.step model=resnet18 $(FAST) trainer.cuda_graphs=false \
		--steps 40 --workers --out $(RESULTS)/eager-resnet18.csv
	$(BIN)/python -m benchmarks.step model=resnet18 $(FAST) trainer.compile=true trainer.deterministic=true \
		--steps 40 --workers --out $(RESULTS)/deterministic-resnet18.csv
	for net in resnet18 vit_small; do $(BIN)/python -m benchmarks.sparse model=$$net $(FAST) \
		--steps 40 --out $(RESULTS)/sparse-$$net.csv || exit; done
	$(BIN)/python -m benchmarks.seeds $(FAST) trainer.compile=true --steps 40 --out $(RESULTS)/seeds.csv
	$(BIN)/python -m benchmarks.ladder trainer.precision=bf16 trainer.compile=true \
		--device cuda --model resnet18 --steps 40 --out $(RESULTS)/ladder.csv
	$(BIN)/python -m benchmarks.scaling $(FAST) --steps 20 --out $(RESULTS)/scaling.csv
	$(BIN)/python -m benchmarks.loader --device cuda --precision bf16 --workers 1 4 8 16 --batch-size 128 \
		--images 8192 --steps 20 --out $(RESULTS)/loader.csv
	$(BIN)/python -m benchmarks.startup --device cuda --out $(RESULTS)/startup.csv

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
	@echo "installing the packages of requirements.lock into .venv (6.0 GB)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.lock
	# this folder on the path of .venv, so that sam_bench can be imported from everywhere
	$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "sam_bench.pth").write_text("$(CURDIR)\n")'
	touch $@

# every version and hash, for all platforms, from the lower bounds in pyproject.toml
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --extra test --extra bench --extra docs --extra slurm --extra ray \
		--upgrade --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv build *.egg-info
