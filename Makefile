# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log

LOWEST := .venv-lowest
# Of torch, another than the lowest may be named where no build of it for this machine is to be had.
TORCH ?= 2.11

.PHONY: demo test test-lowest lint docs kaggle clean

# The embedded main job: teachers, student, stack, report.
demo: $(STAMP)
	@echo "1 of 3: two teachers, tiny Llama and Gemma-2 in NF4 with LoRA, predict every row out of fold"
	@$(BIN)/python -m distill.teacher_oof
	@echo "2 of 3: their soft labels teach a smaller student"
	@$(BIN)/python -m distill.student
	@echo "3 of 3: a stack blends them, and is scored on folds it was not fitted on"
	@$(BIN)/python -m ensemble.stack

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal

# Under the oldest versions that pyproject.toml allows, in an environment of its own.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -q -n auto --dist worksteal tests/data tests/ensemble tests/distill

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in dist/docs; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m docs.build

# Wheels and a notebook for a machine without a network, in dist/kaggle.
kaggle: $(STAMP)
	$(BIN)/python -m docs.kaggle

# What the installer has to say stands in a log, and is shown where it fails. It would compile what it installs on
# one core; some of that is for other Pythons, and fails.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes once; log: $(LOG))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --upgrade pip && \
	   $(BIN)/python -m pip install --no-compile -c constraints.txt -e ".[all,dev,docs,notebooks]"; } >$(LOG) 2>&1 \
	   || { tail -n 25 $(LOG); echo "installation failed; all of it: $(LOG)"; exit 1; }
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib >>$(LOG) 2>&1 || true
	@touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@sed 's/^torch==.*/torch==$(TORCH)/' constraints-lowest.txt >$(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install -q -c $(LOWEST)/constraints.txt -e ".[train,hub]" hypothesis pandas pytest pytest-xdist selenium
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) runs build *.egg-info
