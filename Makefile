# The one door for developers: CI calls the same targets. `make help` lists them.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
BUF    := node_modules/.bin/buf
# 3.11 is the oldest that works; name another one with `make setup PYTHON=python3.13`
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))

# `make demo DATA=DIR ROUNDS=3 SIZE=32`; anything else in DEMO_ARGS, see `scripts/demo.py --help`
DEMO_ARGS ?=
DEMO_FLAGS = $(if $(DATA),--data '$(DATA)') $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SIZE),--size $(SIZE)) $(DEMO_ARGS)
PYTEST_ARGS ?=
# a file's tests stay together and in order: the stories of tests/e2e share a federation and come last
JOBS ?= 2
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# stories that kill, cut off or put back what they start; tests/faults is theirs
FAULTS = tests/e2e/test_failpoints.py tests/e2e/test_crashes.py tests/e2e/test_backups.py

.PHONY: help setup demo demo-up demo-down test test-flower deploy-test faults faults-long check format proto presets-table bench bench-gpu quality lock cli-papers wheelhouse deb bundle images clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Build the environment in .venv (torch for CPUs unless pip is told otherwise)

$(STAMP): pyproject.toml constraints.txt
	@scripts/setup.sh '$(PYTHON)' '$(VENV)'
	@touch $@

demo: $(STAMP) ## One aggregator and four hospitals on this machine: train, report in demo/report.html (DATA=DIR ROUNDS=N SIZE=PX)
	@$(BIN)/python scripts/demo.py run $(DEMO_FLAGS)

demo-up: $(STAMP) ## Start the demo's five daemons again on the same state
	@$(BIN)/python scripts/demo.py up

demo-down: $(STAMP) ## Stop them
	@$(BIN)/python scripts/demo.py down

# each process trains one small model at a time, for which a second thread is a loss
test faults: export OMP_NUM_THREADS ?= 1
test: $(STAMP) ## All tests but those of faults, packages and pods (HISTOFED_TILES=DIR runs the end-to-end test on real tiles)
	$(BIN)/pytest $(PARALLEL) $(FAULTS:%=--ignore=%) $(PYTEST_ARGS)

test-flower: $(STAMP) ## The contract with Flower on three of its versions, in throw-away environments (downloads them)
	scripts/test_flower.sh $(BIN)/python

deploy-test: $(STAMP) ## Units, packages, bundle, images and pods as they are used (root; a failure names the Debian packages it wants)
	$(BIN)/pytest tests/deploy $(PYTEST_ARGS)

faults: $(STAMP) ## Faults, fast set: every failpoint, the simulation, a dozen random seeds on real processes (root, cc, iproute2)
	$(BIN)/pytest $(PARALLEL) tests/faults $(FAULTS) $(PYTEST_ARGS)
	$(BIN)/python -m tests.faults.simulation --seeds 1-12,86
	$(BIN)/python -m tests.faults --seeds fast --jobs $(JOBS)

faults-long: $(STAMP) ## 200 random seeds in the simulation, then on real processes, about an hour; the latter go on where they stopped
	$(BIN)/python -m tests.faults.simulation --seeds 1-200
	$(BIN)/python -m tests.faults --seeds 1-200 --jobs $(JOBS) --resume build/faults/passed.json

check: $(STAMP) $(BUF) ## Format, lint, types, imports, proto style and currency
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy -p bench -p tests
	MYPYPATH=scripts $(BIN)/mypy scripts/demo.py scripts/demolib/*.py scripts/preset_costs.py scripts/costlib/*.py
	MYPYPATH=scripts $(BIN)/mypy $(foreach name,lock wheelhouse deb bundle images cli_papers,scripts/$(name).py) scripts/packlib/*.py
	$(BIN)/lint-imports
	$(BUF) lint proto
	PYTHON=$(BIN)/python scripts/proto.sh --check

format: $(STAMP) ## Format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BUF): package.json
	@command -v npm >/dev/null || { echo "make check needs npm for buf (proto style): install Node.js" >&2; exit 1; }
	npm install --no-save
	@touch $@

proto: $(STAMP) ## Generate histofed/v1 from proto/
	PYTHON=$(BIN)/python scripts/proto.sh

presets-table: $(STAMP) ## Count what each preset costs; writes docs/presets.md (some minutes)
	@$(BIN)/python scripts/preset_costs.py

bench: $(STAMP) ## Measure against the targets; writes bench/results.json
	$(BIN)/python bench/run.py

quality: $(STAMP) ## Compare `default` with the paper's recipe on real tiles (3 CPU-hours; DATA=DIR NETS=DIR)
	$(BIN)/python -m bench.quality run --data '$(DATA)' --nets '$(NETS)' --out build/quality
	$(BIN)/python -m bench.quality report --out build/quality

bench-gpu: $(STAMP) ## Measure on a GPU: rate, share of the card's arithmetic, memory; writes bench/gpu-results.json
	$(BIN)/python -m bench.gpu --json bench/gpu-results.json

lock: $(STAMP) ## Resolve and lock what packages and bundle install (deploy/lock)
	$(BIN)/python scripts/lock.py

cli-papers: $(STAMP) ## Write man pages and shell completion from the parsers
	PYTHONPATH=. $(BIN)/python scripts/cli_papers.py

wheelhouse: $(STAMP) ## Fetch every locked wheel and build ours, into build/wheelhouse
	$(BIN)/python scripts/wheelhouse.py

deb: wheelhouse ## Build the Debian packages, into build/deb
	$(BIN)/python scripts/deb.py

bundle: deb $(if $(filter no,$(IMAGES)),,images) ## One folder and one tar that install without a network, into build/bundle (IMAGES=no: no container images)
	PYTHONPATH=. $(BIN)/python scripts/bundle.py $(if $(filter no,$(IMAGES)),--no-images)

images: wheelhouse ## Build the container images with podman, into build/images (BASE=IMAGE)
	$(BIN)/python scripts/images.py --out build/images $(if $(BASE),--base '$(BASE)')

clean: ## Remove what was built, the demo included
	rm -rf $(VENV) node_modules demo build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
