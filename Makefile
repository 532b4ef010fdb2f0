# Every target creates the environment first when it is missing. No other preparation is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(BIN):$(PATH)

.PHONY: leaderboard quick report ablation test torture lint bench verify replay-record readme lock clean

# What is missing of params.yaml, JOBS runs at once, then the table and the page. `dvc repro` alone does one at a time. The
# page's lists of images are made before, since its stage has the threads of one run; it finds them done.
JOBS ?= 2
leaderboard: $(READY)
	python -m pipeline sweep --jobs $(JOBS) --dvc
	python -m pipeline nearest --threads $(JOBS)
	dvc repro report
	@cat results/leaderboard.md

# A tour in a folder of its own: a tiny world, three methods, the table and the page quick/results/report.html.
quick: $(READY)
	mkdir -p quick
	cd quick && PYTHONPATH=.. python -m pipeline sweep --params ../params.quick.yaml --jobs 2
	@grep -q '^external: \[\]' params.quick.yaml || \
	  { cd quick && PYTHONPATH=.. python -m pipeline external --params ../params.quick.yaml; }
	cd quick && PYTHONPATH=.. python -m pipeline leaderboard --params ../params.quick.yaml
	cd quick && PYTHONPATH=.. python -m pipeline report --params ../params.quick.yaml

# One page of all results, which needs no network; the gallery of failures is ranked first where weights are.
report: $(READY)
	python -m pipeline nearest
	python -m pipeline report

# make ablation METHOD=hhcl SEEDS="0 1 2" trains the method's ablation rows and tables their difference to it.
ablation: $(READY)
	python -m pipeline.ablation --method $(METHOD) $(if $(SEEDS),--seeds $(SEEDS))

# As many processes as cores, four at most: a process takes up to 3 GB. A module's tests share one, and its fixtures. In
# the order of the folders: by the number of their tests, the slowest modules would come last.
test: $(READY)
	python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Kills every stage at every file event and compares what its rerun writes; the figures go to docs/reliability.md. Then
# trains every ablation row of every method, of which `make test` samples.
torture: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m tests.torture --jobs 2 --out docs/reliability.md
	WHOLE_ABLATIONS=1 python -m pytest tests/reports/test_ablation.py

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

bench: $(READY)
	python -m benchmarks.renderer
	python -m benchmarks.pseudo_labels
	python -m benchmarks.evaluation

# First every method step by step on a fixed tiny input, which must equal its record on any machine; then results/
# against results/reference and the published numbers. Exit status 1 when a replay differs or a number is below.
verify: $(READY)
	python -m tests.replay
	python -m pipeline.verify

# make replay-record METHOD=hhcl renews the record of a method whose computation was changed on purpose.
replay-record: $(READY)
	python -m tests.replay --record $(METHOD)

# Writes what is generated of results/reference: its table, the parts of README.md and methods/*/README.md, the pictures.
readme: $(READY)
	python -m pipeline.readme

# Pins every package that requirements.txt brings along, with its hashes, for Python 3.11 and newer on every platform.
# What is locked stays while requirements.txt allows it; `make lock UPGRADE=--upgrade` takes the newest.
lock: $(READY)
	uv pip compile requirements.txt --output-file requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" $(UPGRADE)

$(READY): requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

clean:
	rm -rf $(VENV) .cache data initial results/runs results/training results/configs quick
