# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log

.PHONY: demo test lint docs kaggle clean

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

# What the installer has to say stands in a log, and is shown where it fails.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes once; log: $(LOG))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --upgrade pip && \
	   $(BIN)/python -m pip install -c constraints.txt -e ".[all,dev,docs,notebooks]"; } >$(LOG) 2>&1 \
	   || { tail -n 25 $(LOG); echo "installation failed; all of it: $(LOG)"; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
