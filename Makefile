# make quickstart | sft | test | test-slow | test-reference | lint. Every target makes its own virtual environment.
PYTHON ?= python3

.PHONY: quickstart sft test test-slow test-reference lint clean

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv/tested: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/installed

.venv/quickstart: .venv/installed requirements-quickstart.txt
	.venv/bin/python -m pip install --quiet --no-deps -r requirements-quickstart.txt
	touch $@

quickstart: .venv/quickstart
	.venv/bin/python train.py --config=configs/quickstart.py --workdir=runs/quickstart
	.venv/bin/python eval.py --workdir=runs/quickstart --split=test

.venv/sft: .venv/installed requirements-sft.txt
	.venv/bin/python -m pip install --quiet --no-deps -r requirements-sft.txt
	touch $@

sft: .venv/sft
	.venv/bin/python train.py --config=configs/sft.py --workdir=runs/sft
	.venv/bin/python eval.py --workdir=runs/sft --split=test

test: .venv/tested
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/tested
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

lint: .venv/tested
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Live parity with PyTorch, transformers and PEFT, which ftlib itself never needs. The first line takes the CPU build.
# Programs are compiled here as they are for users (tests/conftest.py has them compiled quickly).
.venv-reference/installed: pyproject.toml requirements-reference.txt requirements-quickstart.txt requirements-sft.txt
	$(PYTHON) -m venv .venv-reference
	.venv-reference/bin/python -m pip install --quiet torch==2.13.0
	.venv-reference/bin/python -m pip install --quiet --editable '.[test]' -r requirements-reference.txt
	.venv-reference/bin/python -m pip install --quiet --no-deps -r requirements-quickstart.txt -r requirements-sft.txt
	.venv-reference/bin/python -m pip install --quiet --no-deps farm==0.8.0  # for SQuAD's official script alone
	touch $@

test-reference: .venv-reference/installed
	XLA_FLAGS='--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true' \
	  .venv-reference/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'reference or packages'

clean:
	rm -rf .venv .venv-reference runs
