# The commands of this project. `make demo` and `make test` set up all they need by themselves.

PYTHON ?= python3
# For the tests of the engine openai-whisper; any build does, and the one for CPUs is the smallest.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

# The tests start hundreds of programs: each would compile all that it imports where nothing may be kept.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all servers check format requirements samples golden settings bench-memory bench-startup bench-chunking bench-seams bench-size bench-speed bench-formats bench-threads bench-busy bench-engines bench-service bench-capacity chaos clean

help:  ## Show these commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/base.stamp  ## Transcribe the recordings in samples/.
	@$(BIN)/python tools/demo.py

test: $(VENV)/dev.stamp servers  ## Install what the tests need, and run them.
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/dev.stamp servers  ## All tests, those that take long too (about 20 minutes).
	REQUIRE_SERVICES=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m ""

servers:  ## Install the servers that the tests of a fleet need (Debian as root; elsewhere their tests are skipped).
	@sh tools/servers.sh

check: $(VENV)/dev.stamp  ## Lint, types, layers, pinned requirements.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp  ## Mend what can be mended without thought.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

settings: $(VENV)/dev.stamp  ## Write docs/settings.md anew from settings.py.
	$(BIN)/python tools/settings_page.py

golden: $(VENV)/dev.stamp  ## Write the golden files anew; look at the difference before you commit it.
	REWRITE_GOLDEN=1 $(BIN)/python -m pytest tests/test_formats.py -q

bench-memory: $(VENV)/dev.stamp  ## Memory while ten hours are transcribed (about ten minutes).
	$(BIN)/python benchmarks/memory.py

bench-startup: $(VENV)/dev.stamp  ## How soon the command line answers.
	$(BIN)/python benchmarks/startup.py

bench-chunking: $(VENV)/dev.stamp  ## What padding and bridged pauses are good for.
	$(BIN)/python benchmarks/chunking.py

bench-seams: $(VENV)/dev.stamp  ## Whether anything is lost where a long recording is cut (about six minutes).
	$(BIN)/python benchmarks/seams.py

bench-size:  ## Size of the base install, in an environment of its own.
	sh tools/setup.sh $(PYTHON) .cache/size requirements/base.txt
	@.cache/size/bin/python -m pip uninstall --quiet --yes uv
	@du -sm .cache/size | cut -f1 | sed 's/$$/ MB (limit 600)/'
	@rm -rf .cache/size

bench-speed: $(VENV)/dev.stamp  ## Ten minutes read by us and by faster-whisper on its own.
	$(BIN)/python benchmarks/speed.py

bench-formats: $(VENV)/dev.stamp  ## Time to write each format, and how it grows.
	$(BIN)/python benchmarks/formats.py

bench-threads: $(VENV)/dev.stamp  ## Chunks side by side against one chunk on all cores.
	$(BIN)/python benchmarks/threads.py

bench-busy: $(VENV)/dev.stamp  ## An engine's threads on a machine where other programs want the cores.
	$(BIN)/python benchmarks/busy.py

bench-engines: $(VENV)/dev.stamp  ## Memory and time of each engine, with random weights of the real shapes (about 5 minutes, 3 GB on the disk).
	$(BIN)/python benchmarks/engines.py

bench-service: $(VENV)/dev.stamp  ## The service under load, against the bare engine (about 15 minutes; PARTS="beside clients" for some).
	$(BIN)/python benchmarks/service.py $(PARTS)

bench-capacity: $(VENV)/dev.stamp servers  ## What a fleet's database, broker and store carry (PARTS="queued start" for some).
	$(BIN)/python benchmarks/capacity.py $(PARTS)

chaos: $(VENV)/dev.stamp servers  ## Kill and freeze the service, and a fleet with its servers, while N jobs run (N=1000 SEED=1 by default).
	CHAOS_JOBS=$(or $(N),1000) CHAOS_SEED=$(or $(SEED),1) $(BIN)/python -m pytest tests/test_chaos.py tests/test_fleet_chaos.py -s -m ""

requirements:  ## Pin the dependencies anew (needs uv).
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make requirements" --quiet --upgrade -o requirements/base.txt
	uv pip compile pyproject.toml requirements/build.in --extra cluster --group dev --universal --python-version 3.11 \
	  --generate-hashes --custom-compile-command "make requirements" --quiet --upgrade \
	  -c requirements/base.txt -o requirements/dev.txt
	uv pip compile requirements/build.in --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make requirements" --quiet -c requirements/dev.txt -o requirements/build.txt
	uv pip compile requirements/openai-whisper.in --no-deps --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make requirements" --quiet --upgrade -c requirements/dev.txt \
	  -o requirements/openai-whisper.txt
	for list in requirements/clients/*.in; do \
	  uv pip compile $$list --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --custom-compile-command "make requirements" --quiet --upgrade -o $${list%.in}.txt; done

clean:  ## Remove the environment and what was made.
	rm -rf $(VENV) demo-output build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/base.stamp: requirements/base.txt requirements/build.txt pyproject.toml
	sh tools/setup.sh $(PYTHON) $(VENV) requirements/base.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt requirements/openai-whisper.txt pyproject.toml $(VENV)/base.stamp
	sh tools/setup.sh $(PYTHON) $(VENV) requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --no-compile \
	  -r requirements/openai-whisper.txt
	@touch $@
