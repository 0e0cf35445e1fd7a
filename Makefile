# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone with Python 3.11+.
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check test-slow bench docs clean constraints

setup: $(READY)

# uv installs the pinned set; torch comes with CUDA, without which torchaudio does not load. Bytecode is
# compiled at once: the first starts, and all where Python may not write it, would take seconds longer.
$(READY): pyproject.toml constraints.txt
	@python=$$(for p in python3 python3.13 python3.12 python3.11 python; do \
	  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    && { echo $$p; break; }; done); \
	[ -n "$$python" ] || { echo "birdtune needs Python 3.11 or newer on the PATH"; exit 1; }; \
	echo "setting up .venv with $$($$python --version), once; this downloads about 3 GB"; \
	$$python -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraints constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY)
	@$(BIN)/birdtune demo --out demo

# The slowest end-to-end checks are left to test-slow; .ci/run runs both. Tests that start Ray start processes of
# their own, so that only two of them run at a time; in the slowest ones time matters, and they run one by one.
test: check
	$(BIN)/pytest -m "not slow and not ray" -n auto --maxprocesses 4
	$(BIN)/pytest -m "not slow and ray" -n 2 --dist worksteal

test-slow: $(READY)
	$(BIN)/pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/shared_features.py
	$(BIN)/python benchmarks/ast_frames.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/many_trials.py
	$(BIN)/python benchmarks/asha_search.py

# The reference of every verb, from the commands themselves, and the site; tests hold both.
docs: $(READY)
	$(BIN)/python -m typer tuning.cli utils docs --name birdtune --title "Every verb" --output docs/verbs.md
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . site
	@echo "open site/README.html"

# Pins the newest versions that fit together; torch stays at the version that the tests have seen.
constraints: $(READY)
	echo "torch==2.13.0" > .venv/torch.txt
	$(BIN)/uv pip compile pyproject.toml --constraints .venv/torch.txt --all-extras --universal --upgrade \
	  --python-version 3.11 --no-header --no-emit-index-url --no-annotate --output-file constraints.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache dist demo runs site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
