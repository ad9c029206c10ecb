# make demo      sets up, then builds a small web, its archives and a data set from them, and shows what to do next
# make test      sets up, then everything that CI runs: linter, types, import floors, tests
# make fuzz      runs the fuzzing tests with a random seed, ten times as long
# make setup     the set-up alone; make setup-train adds the trainer (torch: 3 GB)
# make engines   fetches exact versions of Prism, Flink and Spark, for the tests of other engines (1.1 GB)
# make mutants   puts N faults (SEED=0) into MODULES (default: all), and lists those that no test notices (docs/testing.md)
# make cluster   starts a cluster of several processes in .cluster (ENGINE=flink or spark); make cluster-stop ends it (needs make engines)
# make bench     lists the benchmarks
VENV ?= .venv
export VENV
unexport PYTHONDONTWRITEBYTECODE
python = $(VENV)/bin/python
needs = setup.cfg pyproject.toml constraints.txt tools/setup.sh
jobs ?= 2
# Of the tests. One more than processors, since a fifth of the time a test waits.
workers = $(shell expr $(jobs) + 1)
N ?= 40
SEED ?= 0
ENGINE ?= flink

demo: $(VENV)/.base
	$(python) -m pipeline.demo

test: check
	$(python) -m pytest -q -n $(workers) --dist loadfile --no-loadscope-reorder

fuzz: $(VENV)/.dev
	OPENWIT_FUZZ_SEED=random OPENWIT_FUZZ_FACTOR=10 $(python) -m pytest -q -n $(jobs) --timeout 1800 \
	    tests/sources/test_wat.py tests/sources/test_wat_kernel.py tests/sources/test_html.py tests/sources/test_html_kernel.py tests/text/test_clean.py \
	    tests/text/test_matcher.py tests/text/test_matcher_kernel.py tests/text/test_normalize.py tests/sources/test_record_faults.py

# All tests are read once, beside mypy: each process of `test` finds them compiled.
check: $(VENV)/.dev
	$(python) -m ruff check .
	$(python) -m mypy & types=$$!; \
	    found=$$($(python) -m pytest -q --collect-only) || { echo "$$found"; kill $$types 2>/dev/null; exit 1; }; wait $$types
	$(python) -m compileall -q pipeline queries clip_train tests benchmarks tools
	$(python) -m pytest -q tests/test_imports.py

setup: $(VENV)/.base
setup-train: $(VENV)/.train

engines: $(VENV)/.base
	sh tools/engines.sh .engines $(python)

cluster: $(VENV)/.base
	$(python) tools/cluster.py start .cluster --engine $(ENGINE)
cluster-stop:
	$(python) tools/cluster.py stop .cluster

mutants: $(VENV)/.dev
	$(python) -m tools.mutants --jobs $(jobs) --faults $(N) --seed $(SEED) $(if $(MODULES),--modules $(MODULES))

bench:
	@grep -h '^    python benchmarks/' benchmarks/*.py

$(VENV)/.base: $(needs)
	sh tools/setup.sh base
	touch $@
$(VENV)/.train: $(needs)
	sh tools/setup.sh train
	touch $@ $(VENV)/.base
$(VENV)/.dev: $(needs)
	sh tools/setup.sh dev
	touch $@ $(VENV)/.base $(VENV)/.train

clean:
	rm -rf $(VENV) .engines .cluster build *.egg-info .mypy_cache .ruff_cache .pytest_cache
.PHONY: demo test fuzz check setup setup-train engines cluster cluster-stop mutants bench clean
