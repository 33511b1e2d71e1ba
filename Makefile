# Every target sets up what it needs, once, in .venv (and in .venv-jax, for the tests on JAX).

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# How many files of tests run at the same time; each worker takes 2 to 3 GB and one thread, and
# waits for disks, servers and other processes, so that three keep two cores busy.
WORKERS ?= 3
JAX_BIN := .venv-jax/bin
JAX_INSTALLED := .venv-jax/.installed
NEXT_INSTALLED := .venv-next/.installed
DOCS_BIN := .venv-docs/bin
DOCS_INSTALLED := .venv-docs/.installed
# What imports Keras and never TensorFlow, so that it runs on every backend of Keras.
JAX_ROOMS := graph surgery sharing
JAX_TESTS := tests/test_backends.py $(JAX_ROOMS:%=tests/%) $(JAX_ROOMS:%=reusekit/%)

define NEW_ENOUGH
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "reusekit needs Python 3.11 or newer; choose one with: make PYTHON=python3.12" >&2; exit 2; }
endef

.PHONY: help demo demo-text cluster-demo test test-jax test-next lint docs lock dist clean

help:
	@awk '/^## /{text=substr($$0,4)} /^[a-z-]+:/{if (text) printf "make %-12s %s\n", substr($$1,1,length($$1)-1), text; text=""}' Makefile

## Search how deep to cut glyphnet for handwritten digits, and register the result.
demo: $(INSTALLED)
	$(BIN)/python pipelines/cut_search.py --config configs/digits.yaml

## The same on text: prosenet, which has read documentation, sorts texts by topic.
demo-text: $(INSTALLED)
	$(BIN)/python pipelines/cut_search.py --config configs/text.yaml

## The demo on two nodes of Ray on this machine, one killed on the way: the champion is the same.
cluster-demo: $(INSTALLED)
	$(BIN)/python scripts/cluster_demo.py

## Run every test, the examples in the docstrings among them.
test: $(INSTALLED)
	TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

## Run the tests of graph, surgery and sharing on JAX, where no TensorFlow is installed.
test-jax: $(JAX_INSTALLED)
	KERAS_BACKEND=jax $(JAX_BIN)/python -m pytest $(JAX_TESTS)

## Run the same on Keras as it will be, to see early what a coming release breaks.
test-next: $(NEXT_INSTALLED)
	KERAS_BACKEND=jax .venv-next/bin/python -m pytest $(JAX_TESTS)

## Check style, types, and that each room imports only the rooms below it.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

## Build the site into site/, its tutorials executed, its links checked.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/python -m mkdocs build --clean
	$(DOCS_BIN)/python scripts/site/offline.py site

## Pin the newest versions that pyproject.toml allows. Needs uv.
lock:
	uv pip compile pyproject.toml --extra test --group build --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade \
		--output-file requirements.lock
	echo "tensorflow-text; sys_platform == 'never'" | uv pip compile requirements-jax.in \
		--constraint requirements.lock --override /dev/stdin --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade \
		--output-file requirements-jax.lock
	uv pip compile requirements-docs.in --constraint requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade \
		--output-file requirements-docs.lock

## Build wheel and sdist into dist/, twice and compared, and try them in empty environments.
dist: $(INSTALLED)
	$(BIN)/python scripts/verify_dist.py

## Remove what these targets made, .venv among it.
clean:
	rm -rf .venv .venv-jax .venv-next .venv-docs site build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .mypy_cache .hypothesis
	find reusekit pipelines scripts tests -name __pycache__ -type d -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@$(NEW_ENOUGH)
	@echo "Installing into .venv, once: about 3 GB, a few minutes ..."
	$(PYTHON) -m venv .venv
	@# By two processes, half of the packages each: to unpack them takes one core most of a minute.
	@awk '/^[^ ]/ {half = !half} {print > (".venv/" half ".txt")}' requirements.lock
	printf '%s\n' 0 1 | xargs -P 2 -I {} $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-compile --no-deps --require-hashes -r .venv/{}.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# On every core, where pip takes one; a few packages carry files that are no Python on purpose.
	@$(BIN)/python -m compileall -q -j 0 -x '/tests/' .venv/lib > /dev/null || true
	@touch $@

$(JAX_INSTALLED): requirements-jax.lock
	@$(NEW_ENOUGH)
	@echo "Installing into .venv-jax, once: about 1 GB, a minute or two ..."
	$(PYTHON) -m venv .venv-jax
	$(JAX_BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-jax.lock
	@touch $@

# Not pinned: it is there to be the newest.
$(NEXT_INSTALLED): requirements-jax.lock
	@$(NEW_ENOUGH)
	@echo "Installing into .venv-next, once: about 1 GB, a minute or two ..."
	$(PYTHON) -m venv .venv-next
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-jax.lock
	.venv-next/bin/python -m pip uninstall --quiet --yes keras
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --pre keras-nightly
	@touch $@

# It looks for packages in .venv, too, where the tutorials find TensorFlow and the library itself.
$(DOCS_INSTALLED): requirements-docs.lock $(INSTALLED)
	@echo "Installing into .venv-docs, once: about 200 MB, half a minute ..."
	$(BIN)/python -m venv .venv-docs
	$(DOCS_BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-docs.lock
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
		> "$$($(DOCS_BIN)/python -c 'import site; print(site.getsitepackages()[0])')/reusekit-venv.pth"
	@touch $@
