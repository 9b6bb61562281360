# The version of the tests. A range is possible too: rm -r .venv && make test TORCH='torch>=2.6,<2.14'. The packages
# of an existing .venv stay as they are, whatever TORCH, PYTHON and CONSTRAINTS are.
TORCH ?= torch==2.13.0
PYTHON ?= python3
# The versions of all other packages that the tests ran with. The ranges of pyproject.toml: make install CONSTRAINTS=
CONSTRAINTS ?= constraints.txt

RUN := .venv/bin/python
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2
INSTALLED := .venv/.installed
BENCH_RUN := .venv-bench/bin/python
BENCH_INSTALLED := .venv-bench/.installed
DEMO := outputs/demo
# make gpu runs without .venv, for machines without network: PYTHON must have torch; other packages come from WHEELS
DEVICE ?= cuda
QUICK ?=
GPU_OUT ?= outputs/gpu
WHEELS ?= wheels
PYTHON_VERSION ?= 3.12
GPU_SITE := $(CURDIR)/.gpu-site
GPU_PYTHON = PYTHONPATH="$(GPU_SITE):$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))" $(PYTHON)
GPU_RUN = $(GPU_PYTHON) -m benchmarks.gpu
WEIGHTS := $(DEMO)/dvae/model.safetensors $(DEMO)/clip/model.safetensors $(DEMO)/transformer/model.safetensors

comma := ,
fail = { echo "make: $(1)" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install demo drawings drawings-page pictures test test-slow interpreters bench gpu gpu-install gpu-tests gpu-sampling gpu-training gpu-demo wheels \
	patterns architecture configs edits constraints site notebooks recorded lint types

help: ## list these targets
	@echo "usage: make <target>"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with all packages

demo: $(INSTALLED) ## train all three models on the CPU, sample images, evaluate
	$(RUN) train.py experiment=demo
	@$(MAKE) --no-print-directory $(DEMO)/samples.png $(DEMO)/metrics.json
	@echo
	@echo "checkpoints  $(DEMO)/dvae $(DEMO)/clip $(DEMO)/transformer"
	@echo "metrics      $(DEMO)/metrics.md $(DEMO)/metrics.json"
	@echo "images       $(DEMO)/samples.png"
	@echo "next         $(RUN) sample.py checkpoint=$(DEMO) caption=\"a small red circle above a large blue square\""

test: $(INSTALLED) ## run the fast tests, about 6 minutes on two cores
	$(PYTEST) --dist loadfile -m "not slow and not browser"

test-slow: $(INSTALLED) ## run the other tests: ranks, wheel, long trainings, browser
	$(PYTEST) --dist loadgroup -m "slow or browser"

interpreters: $(INSTALLED) ## run the tests on each installed Python from 3.10 to 3.13
	TORCH="$(TORCH)" $(RUN) -m nox

bench: $(BENCH_INSTALLED) ## time data loading, training and sampling beside other projects
	$(BENCH_RUN) benchmarks/data.py
	$(BENCH_RUN) benchmarks/cpu_settings.py
	$(BENCH_RUN) benchmarks/training.py
	$(BENCH_RUN) benchmarks/sampling.py

gpu: ## test, time and demo on a CUDA GPU; on a CPU: DEVICE=cpu QUICK=1
	-@for part in tests sampling training demo; do $(MAKE) --no-print-directory gpu-$$part; done
	@$(GPU_RUN) summary --out "$(GPU_OUT)"

gpu-tests gpu-sampling gpu-training gpu-demo: gpu-install
	@$(GPU_RUN) $(@:gpu-%=%) --device "$(DEVICE)" --out "$(GPU_OUT)" $(if $(QUICK),--quick)

gpu-install:
	@$(GPU_PYTHON) -m benchmarks.gpu.requirements install "$(WHEELS)" "$(GPU_SITE)"

wheels: ## download the packages of make gpu, for a machine without network
	$(PYTHON) -m benchmarks.gpu.requirements collect "$(WHEELS)" "$(PYTHON_VERSION)"

drawings: $(INSTALLED) ## download and build the drawings: outputs/drawings
	$(RUN) -m dalle.data.drawings.build --out outputs/drawings

drawings-page: ## write the table of authors and licences: docs/drawings.md
	$(RUN) docs/drawings.py outputs/drawings

constraints: $(INSTALLED) ## write the versions in .venv: constraints.txt
	@versions=$$($(RUN) -m pip freeze --exclude-editable) \
	&& { echo "# Written by make constraints: the versions that the tests ran with, for Python 3.11 and later."; \
	echo "$$versions" | grep -vi '^torch==\|^dall-e==\|@' | sed 's/$$/; python_version >= "3.11"/'; } > constraints.txt

site: $(INSTALLED) ## make a web site of the documentation: site/index.html
	$(RUN) -m mkdocs build --quiet

pictures: $(INSTALLED) ## draw with the bundled model: docs/drawings-*.png
	$(RUN) docs/pictures.py

patterns: $(INSTALLED) ## draw the attention patterns: docs/patterns.png
	$(RUN) docs/patterns.py

architecture: $(INSTALLED) ## draw the model: docs/architecture.svg
	$(RUN) docs/architecture.py

configs: $(INSTALLED) ## write the reference of all settings: docs/configs.md
	$(RUN) docs/configs.py

edits: $(INSTALLED) $(WEIGHTS) ## draw an example of each edit: docs/edits.png
	$(RUN) docs/edits.py

notebooks: $(INSTALLED) $(WEIGHTS) ## run the notebooks, which write their .ipynb
	$(RUN) notebooks/make.py

recorded: $(INSTALLED) ## record reference values of tests: tests/recorded
	$(RUN) tests/recorded/recording.py

lint: $(INSTALLED) ## check style: ruff for Python, hadolint for the Dockerfile
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	.venv/bin/hadolint Dockerfile

types: $(INSTALLED) ## run pyright
	$(RUN) -m pyright

$(DEMO)/samples.png: $(WEIGHTS)
	$(RUN) sample.py +prompts=demo checkpoint=$(DEMO) candidates=64 keep=8 seed=0 out=$(DEMO)/samples
	cp $(DEMO)/samples/grid.png $@

$(DEMO)/metrics.json: $(WEIGHTS)
	$(RUN) evaluate.py checkpoint=$(DEMO)

$(WEIGHTS): ;

# dall-e is OpenAI's code, to compare with; --no-deps, since it asks for torchvision
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else 1)' \
	|| $(call fail,$(PYTHON) is missing or not Python 3.10 to 3.13: make install PYTHON=python3.12)
	@$(PYTHON) -m venv .venv \
	|| $(call fail,$(PYTHON) cannot make environments: install its package venv$(comma) on Debian python3-venv)
	$(RUN) -m pip install --quiet "$(TORCH)" \
	|| $(call fail,torch cannot be installed: check the network and the free space (6 GB)$(comma) or choose a version with TORCH=)
	$(RUN) -m pip install --quiet --editable ".[data,eval,decoder,hub,sign,croissant,studio,slurm,dev]" $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) \
	|| $(call fail,a package cannot be installed: check the network; if its version does not exist$(comma) make install CONSTRAINTS= takes the newest)
	$(RUN) -m pip install --quiet --no-deps dall-e==0.1 \
	|| $(call fail,dall-e cannot be installed: check the network$(comma) and run the same command again)
	@touch $@

$(BENCH_INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv-bench
	$(BENCH_RUN) -m pip install --quiet "$(TORCH)" \
	|| $(call fail,torch cannot be installed: check the network and the free space (6 GB)$(comma) or choose a version with TORCH=)
	$(BENCH_RUN) -m pip install --quiet --editable ".[data]" "transformers>=5" x-transformers webdataset requests attrs
	$(BENCH_RUN) -m pip install --quiet --no-deps dalle-pytorch==1.6.6 axial-positional-embedding rotary-embedding-torch dall-e==0.1 # they ask for torchvision
	@touch $@
