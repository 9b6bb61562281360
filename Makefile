# The version that the tests ran with. A range works too: make test TORCH='torch>=2.6,<2.14'
TORCH ?= torch==2.13.0
PYTHON ?= python3

RUN := .venv/bin/python
INSTALLED := .venv/.installed
BENCH_RUN := .venv-bench/bin/python
BENCH_INSTALLED := .venv-bench/.installed
DEMO := outputs/demo
# make gpu: on a machine that has torch and no network, so without .venv; what PYTHON lacks comes from WHEELS
DEVICE ?= cuda
QUICK ?=
GPU_OUT ?= outputs/gpu
WHEELS ?= wheels
PYTHON_VERSION ?= 3.12
GPU_SITE := $(CURDIR)/.gpu-site
GPU_PYTHON = PYTHONPATH="$(GPU_SITE):$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))" $(PYTHON)
GPU_RUN = $(GPU_PYTHON) -m benchmarks.gpu
WEIGHTS := $(DEMO)/dvae/model.safetensors $(DEMO)/clip/model.safetensors $(DEMO)/transformer/model.safetensors

.DEFAULT_GOAL := help
.PHONY: help install demo drawings drawings-page test bench gpu gpu-install gpu-tests gpu-sampling gpu-training gpu-demo wheels patterns \
	architecture configs edits notebooks recorded lint types

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## .venv with everything that demo and test need

demo: $(INSTALLED) ## train all three parts on the CPU, draw pictures, measure
	$(RUN) train.py experiment=demo
	@$(MAKE) --no-print-directory $(DEMO)/samples.png $(DEMO)/metrics.json
	@echo
	@echo "checkpoints  $(DEMO)/dvae $(DEMO)/clip $(DEMO)/transformer"
	@echo "metrics      $(DEMO)/metrics.md $(DEMO)/metrics.json"
	@echo "pictures     $(DEMO)/samples.png"
	@echo "next         $(RUN) sample.py checkpoint=$(DEMO) caption=\"a small red circle above a large blue square\""

test: $(INSTALLED) ## the whole test suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

bench: $(BENCH_INSTALLED) ## reading, training and drawing, beside other people's code and the machine's limit
	$(BENCH_RUN) benchmarks/data.py
	$(BENCH_RUN) benchmarks/training.py
	$(BENCH_RUN) benchmarks/sampling.py

gpu: ## all that needs a CUDA card: gpu-tests, gpu-sampling, gpu-training, gpu-demo (DEVICE=cpu QUICK=1: without one)
	-@for part in tests sampling training demo; do $(MAKE) --no-print-directory gpu-$$part; done
	@$(GPU_RUN) summary --out "$(GPU_OUT)"

gpu-tests gpu-sampling gpu-training gpu-demo: gpu-install
	@$(GPU_RUN) $(@:gpu-%=%) --device "$(DEVICE)" --out "$(GPU_OUT)" $(if $(QUICK),--quick)

gpu-install:
	@$(GPU_PYTHON) -m benchmarks.gpu.requirements install "$(WHEELS)" "$(GPU_SITE)"

wheels: ## what a machine without a network needs for make gpu: PYTHON_VERSION=3.12
	$(PYTHON) -m benchmarks.gpu.requirements collect "$(WHEELS)" "$(PYTHON_VERSION)"

drawings: $(INSTALLED) ## download and build the data set of drawings, outputs/drawings
	$(RUN) -m dalle.data.drawings.build --out outputs/drawings

drawings-page: ## the table of authors and licences in docs/drawings.md
	$(RUN) docs/drawings.py outputs/drawings

patterns: $(INSTALLED) ## the attention patterns as a picture, docs/patterns.png
	$(RUN) docs/patterns.py

architecture: $(INSTALLED) ## the drawing of the model, docs/architecture.svg
	$(RUN) docs/architecture.py

configs: $(INSTALLED) ## every setting that can be typed, docs/configs.md
	$(RUN) docs/configs.py

edits: $(INSTALLED) $(WEIGHTS) ## every edit of the demo's pictures, docs/edits.png
	$(RUN) docs/edits.py

notebooks: $(INSTALLED) $(WEIGHTS) ## run the notebooks on the demo and on the sweeps that there are
	$(RUN) notebooks/make.py

recorded: $(INSTALLED) ## what training, drawing and measuring give now, for the tests to compare with
	$(RUN) tests/recorded/recording.py

lint: $(INSTALLED) ## ruff: style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(INSTALLED) ## pyright
	$(RUN) -m pyright

$(DEMO)/samples.png: $(WEIGHTS)
	$(RUN) sample.py +prompts=demo checkpoint=$(DEMO) candidates=64 keep=8 seed=0 out=$(DEMO)/samples
	cp $(DEMO)/samples/grid.png $@

$(DEMO)/metrics.json: $(WEIGHTS)
	$(RUN) evaluate.py checkpoint=$(DEMO)

$(WEIGHTS): ;

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet "$(TORCH)"
	$(RUN) -m pip install --quiet --editable ".[data,eval,dev]"
	$(RUN) -m pip install --quiet --no-deps dall-e==0.1 # OpenAI's code, to compare with; it asks for torchvision
	@touch $@

$(BENCH_INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv-bench
	$(BENCH_RUN) -m pip install --quiet "$(TORCH)"
	$(BENCH_RUN) -m pip install --quiet --editable ".[data]" "transformers>=5" webdataset requests
	$(BENCH_RUN) -m pip install --quiet --no-deps dalle-pytorch==1.6.6 axial-positional-embedding rotary-embedding-torch # it asks for torchvision
	@touch $@
