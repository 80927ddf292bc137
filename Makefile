# setup | demo | test | lint | bench | gpu | voice | clean     (README.md explains them)
#
# PYTHON  the interpreter; a PyTorch >= 2.10 that it can import is kept and used
# TORCH   what pip is asked for when it has none. The default never downloads a CUDA build on a
#         machine without a GPU. It is a pip requirement and may carry pip options.
# JOBS    processes that run the tests: as many as there are cores, 8 at most
# MARK    pytest's -m expression for `make test`;  ARGS  further arguments for pytest
# PARTS   of `make bench`, by default all;  FULL=1  with every size and routing, as the kept report
# OUT     where `make demo` and `make gpu` leave their files
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= out
JOBS   ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
MARK   ?= not gpu and not slow
ARGS   ?=
BENCHES := ceilings ops moe flow conv decoder conv_vae codecs transformers formats end_to_end text report
PARTS  ?= $(BENCHES)
SOME_moe := --tokens 1,8,16,64,512 --routing balanced
FULL_moe := --tokens 1,2,4,8,16,32,64,128,512,4096
SOME_flow := --tokens 11 --batches 1,4
FULL_flow :=
SOME_conv := --lengths patch,10s --budget 0.3
FULL_conv :=
TORCH  ?= $(if $(shell nvidia-smi -L 2>/dev/null),torch==2.13.0,torch==2.13.0+cpu)
# the oldest Triton that is supported, beside the environment: tests/ops compiles with both
OLDEST_TRITON := 3.6.0
TRITON_FOLDER := .venv-triton-3.6

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench gpu voice clean

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
HAS_TORCH := -W ignore -c 'import sys, torch; v = torch.__version__.split("."); sys.exit((int(v[0]), int(v[1])) < (2, 10))'
NATIVE := $(wildcard pyproject.toml setup.py MANIFEST.in) $(shell find csrc -type f 2>/dev/null)

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.tests

demo: $(VENV)/.runtime
	@mkdir -p $(OUT)
	$(VENV)/bin/mingcore tts "Hello, this is Ming speaking from a plain CPU." --seed 0 --out $(OUT)/demo.wav
	@echo "and this is what it hears in it:"
	@$(VENV)/bin/mingcore asr $(OUT)/demo.wav --quiet

test: $(VENV)/.tests
	$(PY) -m pytest -m "$(MARK)" -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
	PYTHONPATH=.:kernels $(VENV)/bin/lint-imports

# Measures, keeps what it found in bench/results/<machine>, and makes that folder's report.html.
# Parts can be run one at a time, `make bench PARTS="moe report"`; what needs transformers is left
# out without it.
bench: $(VENV)/.tests
	kept=bench/results/$$($(PY) -W ignore -c 'from mingcore.testing import machine; print(machine.slug())')
	measure() { echo "make: $$*"; $(PY) bench/"$$@"; }
	with_transformers() {
	  if $(PY) -W ignore -c 'import transformers' 2>/dev/null; then measure "$$@"
	  else echo "make: $$1 is left out: transformers is not installed"; fi
	}
	for part in $(PARTS); do
	  case $$part in
	    ceilings) measure ceilings.py --keep $$kept ;;
	    ops) $(PY) -m pytest bench --benchmark-only -m "not gpu" -q --keep $$kept $(ARGS) ;;
	    moe) measure run.py --sweep moe --size real --layers 2 $($(if $(FULL),FULL,SOME)_moe) --formats bf16,int8 --keep $$kept ;;
	    flow) measure run.py --sweep flow --size real $($(if $(FULL),FULL,SOME)_flow) --keep $$kept ;;
	    conv) measure run.py --sweep conv $($(if $(FULL),FULL,SOME)_conv) --keep $$kept ;;
	    decoder) measure bench_decoder.py --size real --budget 5 --keep $$kept ;;
	    conv_vae) measure bench_conv_vae.py --seconds 1 --budget 2 --keep $$kept ;;
	    codecs) with_transformers bench_codecs.py --keep $$kept ;;
	    transformers) with_transformers bench_transformers.py --keep $$kept ;;
	    formats) measure format_cost.py --keep $$kept ;;
	    end_to_end) for format in "fp32" "bf16" "fp32 --weights int8" "fp32 --weights int8_dyn"; do measure bench_e2e.py --size mid --out $$kept --dtype $$format; done ;;
	    text) for format in "int8_dyn --rounds 5" "fp32 --batches 8 --rounds 3"; do measure bench_text.py --out $$kept --weights $$format; done ;;
	    report) measure report.py $$kept ;;
	    *) echo "make: PARTS: there is no $$part, only $(BENCHES)" >&2; exit 2 ;;
	  esac
	done

# On a bare machine: its own Python and PyTorch, no virtual environment, no network.
gpu:
	OUT=$(OUT) $(PYTHON) bench/gpu.py

# The bundled checkpoint anew: flite's speech, the codec, the speaker, the folder. Some two
# hours on two cores (not timed as a whole); goes on where it was stopped. Without the variables, half of the time goes
# into giving memory back and forth.
voice: export PYTHONPATH := .:kernels
voice: export MALLOC_MMAP_MAX_ := 0
voice: export MALLOC_TRIM_THRESHOLD_ := 34359738368
voice: $(VENV)/.tests
	folder=$(OUT)/voice
	[ -f $$folder/corpus/index.json ] || $(PY) examples/tiny_voice/corpus.py $$folder/corpus
	for stage in codec speech; do
	  $(PY) examples/tiny_voice/$$stage.py $$folder/corpus $$folder/run --resume
	done
	$(PY) examples/tiny_voice/plots.py $$folder/run $$folder/losses.png
	$(PY) examples/tiny_voice/export.py $$folder/run

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .benchmarks $(OUT)
	find mingcore kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf $(VENV) $(TRITON_FOLDER)

# A virtual environment with a PyTorch in it: the one $(PYTHON) has, or $(TORCH).
$(VENV)/.torch:
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
	  echo "make: mingcore needs Python 3.10 or newer; name one with PYTHON=..." >&2; exit 1
	fi
	if $(PYTHON) $(HAS_TORCH) 2>/dev/null; then
	  echo "make: keeping the PyTorch that $(PYTHON) has"
	  $(PYTHON) -m venv --system-site-packages $(VENV)
	  if ! $(PY) $(HAS_TORCH) 2>/dev/null; then
	    # $(PYTHON) is itself of a virtual environment, whose packages a new one does not see
	    $(PYTHON) -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' \
	      > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
	  fi
	else
	  $(PYTHON) -m venv $(VENV) || { echo "make: no virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	  $(PIP) install -q $(TORCH) || {
	    echo "make: pip cannot install '$(TORCH)'; name the PyTorch >= 2.10 to install, e.g. make $(MAKECMDGOALS) TORCH='torch==2.13.0 --index-url URL', URL being PyTorch's index of CPU builds" >&2
	    exit 1
	  }
	fi
	$(PY) $(HAS_TORCH)
	$(PY) -W ignore -c 'import torch; print("torch==" + torch.__version__)' > $(VENV)/constraints.txt
	touch $@

# The package, editable, and what it needs to run. Nothing may replace the PyTorch chosen above.
$(VENV)/.runtime: $(VENV)/.torch $(NATIVE)
	@echo "make: building mingcore and installing what it needs to run"
	$(PIP) install -q -c $(VENV)/constraints.txt "setuptools>=77" wheel "pybind11>=2.13" "ninja>=1.11"
	$(PIP) install -q -c $(VENV)/constraints.txt --no-build-isolation -e .
	touch $@

# What the tests and linters need; a second Triton beside the first, for the compile tests.
$(VENV)/.tests: $(VENV)/.runtime
	@echo "make: installing what the tests need"
	$(PIP) install -q -c $(VENV)/constraints.txt "mingcore[test]"
	if [ ! -d $(TRITON_FOLDER)/triton/backends ]; then
	  $(PIP) install -q --no-deps --target $(TRITON_FOLDER) triton==$(OLDEST_TRITON)
	fi
	touch $@
