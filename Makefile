# make help lists the targets. PRESET, CORPUS, DATA, SCENARIO and TARGET choose the run, SUBSET what data downloads,
# N, KILLS and SEED how much fuzz and soak try; ENGINE, DEVICE, SLURM, DETACH and PROCESSES where it is computed.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules -j2

PYTHON ?= python3
PRESET ?= laptop
CORPUS ?= synthetic
DATA   ?=
SCENARIO ?=
TARGET ?=
SUBSET ?=
BUDGET ?=
METHOD ?=
FORMAT ?=
TRANSCRIPTS ?=
SUBMISSIONS ?=
SEEDS  ?=
ISOLATION ?=
N      ?= 1000
KILLS  ?= 100
SEED   ?= 0
ENGINE ?= $(ALSPEECH_ENGINE)
DEVICE ?= $(ALSPEECH_DEVICE)
SLURM  ?= $(ALSPEECH_SLURM)
DETACH ?= $(ALSPEECH_DETACH)
PROCESSES ?= $(ALSPEECH_PROCESSES)
export ALSPEECH_ENGINE := $(ENGINE)
export ALSPEECH_DEVICE := $(DEVICE)
export ALSPEECH_SLURM  := $(SLURM)
export ALSPEECH_DETACH := $(DETACH)
export ALSPEECH_PROCESSES := $(PROCESSES)
# as run_name in src/alspeech/workshop/config.py
RUN    := $(CORPUS)-$(PRESET)$(if $(SCENARIO),-$(SCENARIO))$(if $(TARGET),-for-$(notdir $(TARGET:%/=%)))
OUT    := build/$(RUN)
PY     := .venv/bin/python
WHAT   := --preset "$(PRESET)" --corpus "$(CORPUS)" --data "$(DATA)" --scenario "$(SCENARIO)" \
          --target "$(TARGET)"

# the systems, each a target of that name below; its notebooks, figures and tables
SYSTEMS := figures map beyond loss-prediction pseudo-labels aloe
# those that take longest first, so that both of two cores are busy until the end
notebooks_figures := 2_querying 4_rankings 1_base_training 3_error_curves
figures_figures   := fig1_error_curves fig2a_pctc_vs_entropy fig2b_egl_vs_entropy
tables_figures    := table1.csv table1.md error_curves.csv comparisons.csv claims.csv scores.csv provenance.json
notebooks_map := 8_when_does_it_pay
figures_map   := fig_map_differences fig_map_savings fig_studies
tables_map    := training.csv rounds.csv provenance_studies.json
notebooks_beyond := 9_beyond_egl
figures_beyond   := fig_beyond_argument fig_beyond_steps fig_beyond_methods fig_beyond_settings
tables_beyond    := $(addprefix beyond_,curves.csv comparisons.csv steps.csv queries.csv settings.csv rounds.csv argument.csv) provenance_beyond.json
notebooks_loss-prediction := 5_loss_prediction
figures_loss-prediction   := fig_lp_scatter fig_lp_curves fig_lp_rankings
tables_loss-prediction    := $(addprefix lp_,curves.csv variants.csv predictions.csv scores.csv) provenance_loss_prediction.json
notebooks_pseudo-labels := 6_pseudo_labels
figures_pseudo-labels   := fig_pl_collapse fig_pl_regularisers fig_pl_active
tables_pseudo-labels    := pl_runs.csv pl_monitor.csv pl_active.csv provenance_pseudo_labels.json
notebooks_aloe := 7_aloe
figures_aloe   := fig_aloe_uncertainty fig_aloe_functions fig_aloe_embedding
tables_aloe    := aloe_curves.csv aloe_runs.csv aloe_table1.csv aloe_table2.csv provenance_aloe.json

executed = $(notebooks_$1:%=$(OUT)/%.ipynb)
files    = $(foreach f,$(figures_$1),figures/$(RUN)/$f.png figures/$(RUN)/$f.pdf) \
           $(tables_$1:%=results/$(RUN)/%)
lost     = $(if $(filter-out $(wildcard $(call files,$1)),$(call files,$1)),FORCE) # make anew what was removed

.PHONY: help $(SYSTEMS) check plan data query learn audit loop others course leaderboard book all test fuzz soak power \
        findings lint lab bench clean distclean
help: ## list the targets
	@echo 'make TARGET [PRESET=laptop|smoke|reference|paper] [SCENARIO=name] [DATA=path] [SUBSET=name]'
	@echo '            [TARGET=validation|test|pool|none|folder]'
	@echo '            [CORPUS=synthetic|fsdd|jsonl|kaldi|librispeech|speechcommands|esc10|vocalsound]'
	@echo '            [ENGINE=local|ray|slurm] [DEVICE=cpu|cuda|cuda:1] [PROCESSES=1]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "  %-17s%s\n", $$1, $$2}'

figures: $(call executed,figures) ## Figures 1 and 2 and Table 1 (notebooks 1-4)
map: $(call executed,map) ## where a query pays: scenarios, claims, studies (notebook 8)
beyond: $(call executed,beyond) ## from EGL to the paper's own argument (notebook 9)
loss-prediction: $(call executed,loss-prediction) ## a recogniser that predicts its own loss (notebook 5)
pseudo-labels: $(call executed,pseudo-labels) ## what the audio that nobody labelled is worth (notebook 6)
aloe: $(call executed,aloe) ## few labels on a frozen encoder (notebook 7)
$(SYSTEMS):
	@echo 'figures/$(RUN) results/$(RUN) $^ are up to date'

all: ## every system, one after another, and the loop
	@for system in $(SYSTEMS) loop; do $(MAKE) --no-print-directory $$system; done

book: .venv/book ## static pages in build/book from the notebooks that make all has executed
	@if [ -d $(OUT) -a -e build/book/index.html -a -e $(MADE) -a -z "$(REPOSITORY)" ] && \
	  [ -z "$$(find $(OUT) $(PAGES) -maxdepth 0 -newer $(MADE) -print -quit)" ]; then \
	  echo 'build/book/index.html is up to date'; else $(PY) book/make.py $(WHAT); fi

check: .venv/installed ## read and check CORPUS in DATA, show what was found, train nothing
	$(PY) -m alspeech check $(WHAT)

plan: .venv/installed ## what a run will take: hours, memory and disk of every step, measured in a minute
	$(PY) -m alspeech plan $(WHAT)

data: .venv/installed ## download CORPUS (its SUBSET) from its official address
	$(PY) -m alspeech data --corpus "$(CORPUS)" --subset "$(SUBSET)"

test: .venv/installed ## the tests
	$(PY) -m pytest -n 3 --dist worksteal

fuzz: .venv/installed ## N=1000 malformed corpora through check, drawn from SEED=0
	$(PY) tests/fuzz.py --number "$(N)" --seed "$(SEED)"

soak: .venv/installed ## small runs killed KILLS=100 times, drawn from SEED=0, end with equal tables
	$(PY) tests/soak.py --kills "$(KILLS)" --seed "$(SEED)"

query: .venv/installed ## of CORPUS in DATA, which recordings to transcribe for BUDGET=30min (by METHOD, as FORMAT)
	$(PY) -m alspeech query $(WHAT) --budget "$(BUDGET)" --method "$(METHOD)" --format "$(FORMAT)"

learn: .venv/installed ## … and what came back, TRANSCRIPTS=file: kept, and learned from
	$(PY) -m alspeech learn $(WHAT) --transcripts "$(TRANSCRIPTS)"

audit: .venv/installed ## transcripts that a recogniser which has not learned them does not believe
	$(PY) -m alspeech audit $(WHAT)

course: $(OUT)/figures.tables ## the labs for students and instructors, with the run that they read, and a zip
	$(PY) -m alspeech course $(WHAT)

leaderboard: .venv/installed ## acquisition functions of SUBMISSIONS=folder, on hidden SEEDS=file if you like
	$(PY) -m alspeech leaderboard $(WHAT) --submissions "$(SUBMISSIONS)" --seeds "$(SEEDS)" \
	  --isolation "$(ISOLATION)"

loop: .venv/installed ## your own loop: asked, typed, learned, when to stop (notebook 10)
	$(PY) -m alspeech notebook notebooks/10_your_own_loop.ipynb $(WHAT)

power: $(OUT)/figures.tables ## how many seeds a difference of 0.5, 1 and 2 points needs, from the run
	$(PY) -m alspeech power $(WHAT)

findings: .venv/installed ## what the READMEs say of the results, written again from the tables
	$(PY) -m alspeech findings

lint: .venv/installed ## style of code and notebooks
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

lab: .venv/installed ## open the notebooks in JupyterLab
	.venv/bin/jupyter lab notebooks

others: build/label-studio/installed build/readers/installed ## what tests of query's lists use where it is there

bench: .venv/installed build/rivals/installed ## speed, as ratios within one run (25 minutes)
	$(PY) benchmarks/bench.py

clean: ## remove everything that was computed but the committed results
	rm -rf build data/*-*/ .pytest_cache .ruff_cache

distclean: clean ## remove the installation, too
	rm -rf .venv

# ---- how things are made
SOURCES := $(wildcard $(addprefix src/alspeech/,*.py */*.py */*.yaml */*.mplstyle) configs/$(PRESET).yaml configs/scenarios.yaml)

# what the book is made of, and what make.py leaves behind of the run that it was made of; no notebook is executed for it
MADE    := build/.book/made-$(RUN)
PAGES   := $(wildcard $(OUT)/*.ipynb $(OUT)/*/*.ipynb notebooks/*.ipynb course/*.ipynb course/*/*.ipynb results/*/*.csv \
           *.md */README.md book/*.py $(addprefix book/,pages/*.md pages/*/*.md _static/*) \
           $(addprefix src/alspeech/,*.py */*.py workshop/*.js workshop/*.css))

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { \
	  echo "error: $$($(PYTHON) --version) found, 3.11 to 3.14 needed: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv==0.13.8
	.venv/bin/uv pip install --quiet --python $(PY) --compile-bytecode --require-hashes -r requirements.lock
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps --editable .
	@# compile Python's and numba's code once, now: where PYTHONDONTWRITEBYTECODE is set, every process
	@# would else compile what it imports, for three times as long as the import takes
	@$(PY) -m compileall -q src
	@$(PY) -m alspeech.gradients
	@touch $@

# extras, when ENGINE asks for one
.venv/%-installed: requirements-%.lock .venv/installed
	.venv/bin/uv pip install --quiet --python $(PY) --compile-bytecode --no-deps --require-hashes -r $<
	@touch $@

# what only the book needs; of what both locks name, the versions are the same
.venv/book: book/requirements.lock .venv/installed
	.venv/bin/uv pip install --quiet --python $(PY) --compile-bytecode --require-hashes -r $<
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

# those who are to read our lists, the versions of today, apart from our own packages
build/label-studio/installed: | .venv/installed
	mkdir -p $(@D)
	.venv/bin/uv venv --quiet --allow-existing --python $(PY) $(@D)
	.venv/bin/uv pip install --quiet --python $(@D)/bin/python label-studio playwright
	@touch $@
build/readers/installed: | .venv/installed
	mkdir -p $(@D) && echo 'torch; sys_platform == "none"' > $(@D)/ours  # torch is here
	.venv/bin/uv pip install --quiet --python $(PY) --target $(@D) --overrides $(@D)/ours lhotse datasets
	@touch $@

# the choice of DATA, rewritten only when it, or what lies there, changes
$(OUT)/data: FORCE
	@mkdir -p $(OUT); if ! echo '$(DATA)' | cmp -s - $@ || \
	  [ -n "$(DATA)" -a -n "$$(find -L "$(DATA)" -newer $@ -print -quit 2>/dev/null)" ]; then echo '$(DATA)' > $@; fi
FORCE:

.SECONDEXPANSION:
$(OUT)/%.tables: $(OUT)/data $(SOURCES) $$(call lost,$$*) | .venv/installed $(patsubst %,.venv/%-installed,$(filter ray slurm,$(ENGINE)))
	$(PY) -m alspeech run --system $* $(WHAT) || { code=$$?; rm -f $<; rmdir $(OUT) build 2>/dev/null || true; exit $$code; }
	@touch $@

define notebook
$(call executed,$1): $(OUT)/%.ipynb: notebooks/%.ipynb $(OUT)/$1.tables $(call lost,$1)
	$(PY) -m alspeech notebook $$< $(WHAT)
endef
$(foreach s,$(SYSTEMS),$(eval $(call notebook,$s)))
