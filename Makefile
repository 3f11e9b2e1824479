# Everything runs in .venv, made on first use. `make help` lists the commands.
PYTHON ?= python3
NOTEBOOKS ?=
DATASET ?= MNIST
KEPT ?=
FROM ?= Basic_VAE.ipynb
VENV := .venv/bin/python
# Without an NVIDIA driver on Linux, PyTorch's builds for CPUs: 4 GB less. `make CPU=` takes the registry's.
CPU ?= $(shell [ "$$(uname)" = Linux ] && [ ! -e /proc/driver/nvidia ] && ! command -v nvidia-smi >/dev/null && echo 1)
CPU_WHEELS := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := all
.PHONY: all quick lab test tables bench book play sync format clean help

all: .venv/run.stamp ## run the notebooks top to bottom on MNIST, in place, and rewrite images/; KEPT=1 trains nothing that is in weights/, in build/kept/
	$(VENV) tools/run.py $(if $(KEPT),--kept) --dataset $(DATASET) $(NOTEBOOKS)

quick: .venv/run.stamp ## everything, small, in build/quick/, in a few minutes
	$(VENV) tools/run.py --quick --dataset $(DATASET) $(NOTEBOOKS)

lab: .venv/run.stamp ## open the notebooks in JupyterLab
	$(VENV) -m jupyterlab

test: .venv/dev.stamp ## lint, and run the tests
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m pytest -n auto --dist loadfile

tables: .venv/run.stamp ## make the tables of benchmarks/ and docs/ from the rows that were measured
	$(VENV) benchmarks/tables.py

bench: .venv/run.stamp ## race other people's recipes for the same time
	$(VENV) benchmarks/race.py ours --again --threads 1
	$(VENV) benchmarks/race.py / --again --threads 1

book: .venv/dev.stamp ## make an HTML book of the notebooks as they are, in build/book/html
	$(VENV) tools/book.py

play: .venv/run.stamp ## make what play/index.html shows, from the models that the last run left in weights/
	$(VENV) tools/play.py

sync: .venv/run.stamp ## carry the shared cells of one notebook, FROM=Basic_VAE.ipynb, to the others
	$(VENV) tools/sync.py $(FROM)

format: .venv/dev.stamp ## format the code, the notebooks' cells included
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

clean: ## remove build/ and .venv (data/, images/, weights/, results/ and the notebooks stay)
	rm -rf build .venv

help: ## list the commands
	@echo "make [NOTEBOOKS=Basic_VAE.ipynb] [DATASET=MNIST|FashionMNIST|KMNIST|digits|my_images] [KEPT=1] [PYTHON=python3.12] [CPU=1]"
	@sed -n 's/^\([a-z]*\):.*## /  make \1: /p' Makefile | sed 's/make all:/make:/' | awk -F': ' '{printf "%-14s%s\n", $$1, $$2}'

# A stamp is newer than the requirements that were installed, so a second `make` installs nothing.
.venv/run.stamp: requirements.txt
	$(call install,requirements.txt)

.venv/dev.stamp: requirements-dev.txt requirements-book.txt .venv/run.stamp
	$(call install,requirements-dev.txt)

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; $(PYTHON) is not. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing $(1) into .venv (the first time this takes minutes: PyTorch is large)"
	@[ -z "$(CPU)" ] || $(VENV) -m pip install --isolated --retries 0 --index-url $(CPU_WHEELS) \
	  $${PIP_CONSTRAINT:+-c "$$PIP_CONSTRAINT"} $$(grep ^torch requirements.txt) || \
	  echo "$(CPU_WHEELS) cannot be reached: taking the registry's PyTorch with its GPU libraries"
	$(VENV) -m pip install --disable-pip-version-check -r $(1)
	@touch $@
endef
