# make demo   everything on real data, from nothing to a trained, evaluated, exported model (about five minutes with the installation)
# make test   the test suite
# make pages  the commands of the README and of the tutorials, and every example, run on small data
# make slow   what make test leaves out: tests of half a minute and more
# make coverage  the test suite, and which lines of dnascale it runs, in all processes that it starts
# make lowest  the test suite with the oldest packages that pyproject.toml allows, in build/lowest; TORCH=2.13.0 takes that torch all the same
# make faults  training killed 200 times at random moments, and every other test that kills or damages (about half an hour)
# make mutants  the code that commits and reads checkpoints, changed in hundreds of ways, each of which a test must notice
# make cluster  several hosts and a Slurm on this machine (Linux, root); make cluster-packages installs what that needs (Debian, Ubuntu)
# make test-packages installs what tests compare with and would skip without: Chromium, bedtools, gffread, faketime (Debian, Ubuntu; as root)
# make docs   the documentation as a site, in build/site
# make lock   requirements.lock: every package of an installation, with hashes
# make gpu    on a machine with a GPU: the training step beside the Hugging Face Trainer and DeepSpeed, ten minutes of learning, then its tests
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
.PHONY: help demo test coverage lowest pages slow faults mutants cluster cluster-packages test-packages docs lock gpu check format clean

help:
	@sed -n 's/^# make/make/p' Makefile

# A venv holds absolute paths: a moved or copied folder gets a new one.
ifneq ($(shell test "$$(cat .venv/folder 2>/dev/null)" = "$$PWD" && echo here),here)
.PHONY: $(BIN)/python
endif
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("dnascale needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	rm -rf .venv && $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@pwd > .venv/folder

.venv/base: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/base
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/base
	@PATH="$$PWD/$(BIN):$$PATH" bash launch/demo.sh

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 10

coverage: .venv/dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile --durations 10
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lowest: $(BIN)/python
	mkdir -p build
	$(PIP) install uv
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct --extra dev --output-file build/lowest.txt pyproject.toml
	$(if $(TORCH),sed -i.all -E 's/^torch==.*/torch==$(TORCH)/; /^(nvidia|cuda|triton)/d' build/lowest.txt)
	rm -rf build/lowest && $(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip --disable-pip-version-check --quiet install --requirement build/lowest.txt
	build/lowest/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --editable .
	build/lowest/bin/python -m pytest -n 2 --dist loadfile --durations 10

pages: .venv/dev
	$(BIN)/python -m pytest -n 2 -m slow tests/integration/test_snippets.py tests/integration/test_examples.py

slow: .venv/dev
	$(BIN)/python -m pytest -m slow --durations 10

faults: .venv/dev
	$(BIN)/python -m pytest -m faults --durations 10
	$(BIN)/python tests/integration/kills.py --kills 200 --out build/kills.jsonl

mutants: .venv/dev
	$(PIP) install mutmut==3.8.1
	PATH="$$PWD/$(BIN):$$PATH" OMP_NUM_THREADS=1 mutmut run
	$(BIN)/mutmut results

cluster: .venv/dev
	$(BIN)/python -m pytest -m cluster --durations 10

cluster-packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends iproute2 munge slurmctld slurmd slurm-client

test-packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium bedtools gffread faketime libaio-dev g++

docs: .venv/dev
	$(BIN)/python docs/site.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Of PyPI alone, whatever this machine's pip is set to.
lock: .venv/dev
	mkdir -p build
	env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-find-links --constraint constraints.txt --extra deepspeed --extra wandb --extra cloud --output-file build/lock pyproject.toml
	{ sed '/^#/!d' requirements.lock | head -n 2; cat build/lock; } > build/lock.new && mv build/lock.new requirements.lock

gpu: .venv/dev
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: torch sees no GPU here")'
	test -d build/human-cds || $(BIN)/dnascale prepare builtin:human-cds --out build/human-cds
	$(BIN)/python benchmarks/step.py build/human-cds book@512:ours,trainer,trainer-compiled base@1024:ours,trainer,trainer-compiled \
	  small@512@32768:ours,ours+train.cuda_graphs=true,ours+train.compile=whole,ours+train.compile=whole+train.cuda_graphs=true,trainer \
	  base@1024@32768:ours,zero1,zero2,zero3 base@8192@65536:ours,ours+train.flash_attention=FA3,ours+train.flash_attention=FA4,trainer large@1024:ours,trainer \
	  --limit 900 --profile build/kernels --out build/step.jsonl
	$(BIN)/python benchmarks/attention.py
	$(BIN)/dnascale train small data.path=build/human-cds run.dir=build/gpu-run train.minutes=10
	$(BIN)/dnascale eval build/gpu-run
	$(BIN)/python -m pytest -m gpu

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo build mutants
