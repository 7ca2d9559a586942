# make help lists the targets. PRESET, CORPUS and DATA choose the run, SUBSET what data downloads.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules -j2

PYTHON ?= python3
PRESET ?= laptop
CORPUS ?= synthetic
DATA   ?=
SUBSET ?=
RUN    := $(CORPUS)-$(PRESET)
OUT    := build/$(RUN)
PY     := .venv/bin/python
WHAT   := --preset "$(PRESET)" --corpus "$(CORPUS)" --data "$(DATA)"

# the notebooks of each system; a new system adds a line here and a target below
PAPER  := 1_base_training 2_querying 3_error_curves 4_rankings
FILES  := $(addprefix figures/$(RUN)/,$(foreach f,fig1_error_curves fig2a_pctc_vs_entropy \
          fig2b_egl_vs_entropy,$f.png $f.pdf)) \
          $(addprefix results/$(RUN)/,table1.csv table1.md error_curves.csv scores.csv provenance.json)
LOST   := $(if $(filter-out $(wildcard $(FILES)),$(FILES)),FORCE)

.PHONY: help figures check data all test lint lab bench clean distclean
help: ## list the targets
	@echo 'make TARGET [PRESET=laptop|smoke|reference|paper] [DATA=path] [SUBSET=name]'
	@echo '            [CORPUS=synthetic|fsdd|jsonl|kaldi|librispeech|speechcommands]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "  %-12s%s\n", $$1, $$2}'

figures: $(PAPER:%=$(OUT)/%.ipynb) ## Figures 1 and 2 and Table 1 (notebooks 1-4)
	@echo 'figures/$(RUN) results/$(RUN) $(OUT)/*.ipynb are up to date'

all: figures ## everything

check: .venv/installed ## read and check CORPUS in DATA, show what was found, train nothing
	$(PY) -m alspeech check $(WHAT)

data: .venv/installed ## download CORPUS (its SUBSET) from its official address
	$(PY) -m alspeech data --corpus "$(CORPUS)" --subset "$(SUBSET)"

test: .venv/installed ## the tests
	$(PY) -m pytest

lint: .venv/installed ## style of code and notebooks
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

lab: .venv/installed ## open the notebooks in JupyterLab
	.venv/bin/jupyter lab notebooks

bench: .venv/installed build/rivals/installed ## speed, as ratios within one run (15 minutes)
	$(PY) benchmarks/bench.py

clean: ## remove everything that was computed but the committed results
	rm -rf build data/*-*/ .pytest_cache .ruff_cache

distclean: clean ## remove the installation, too
	rm -rf .venv

# ---- how things are made
SOURCES := $(wildcard src/alspeech/*.py src/alspeech/*.mplstyle configs/$(PRESET).yaml)

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
	  echo "error: $$($(PYTHON) --version) found, 3.11 or 3.12 needed: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv==0.13.8
	.venv/bin/uv pip install --quiet --python $(PY) --require-hashes -r requirements.lock
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

# rivals of the benchmark, apart from our own packages; one that cannot be had is left out
build/rivals/installed: benchmarks/flashlight.lock benchmarks/pyctcdecode.lock | .venv/installed
	mkdir -p $(@D)
	-.venv/bin/uv pip install --quiet --python $(PY) --no-deps --require-hashes \
	  --target $(@D)/flashlight -r benchmarks/flashlight.lock
	-.venv/bin/uv venv --quiet --clear --python $(PY) $(@D)/pyctcdecode && \
	  .venv/bin/uv pip install --quiet --python $(@D)/pyctcdecode/bin/python --require-hashes \
	  -r benchmarks/pyctcdecode.lock
	@touch $@

# the choice of DATA, rewritten only when it, or what lies there, changes; LOST makes outputs anew that were removed
$(OUT)/data: FORCE
	@mkdir -p $(OUT); if ! echo '$(DATA)' | cmp -s - $@ || \
	  [ -n "$(DATA)" -a -n "$$(find -L "$(DATA)" -newer $@ -print -quit 2>/dev/null)" ]; then echo '$(DATA)' > $@; fi
FORCE:

$(OUT)/tables: $(OUT)/data $(SOURCES) $(LOST) | .venv/installed
	$(PY) -m alspeech run $(WHAT) || { code=$$?; rm -f $<; rmdir $(OUT) build 2>/dev/null || true; exit $$code; }
	@touch $@

$(OUT)/%.ipynb: notebooks/%.ipynb $(OUT)/tables $(LOST)
	$(PY) -m alspeech notebook $< $(WHAT)
