# make demo   a cluster on this machine: plays, loses processes, goes on, and is audited
# make test   all tests          make check   formatting, types, imports          make clean
# make slow   what takes an hour: 500 MB cut after each 8, sixty copies of a live database, 5 GiB in
#             flat memory; SLOW_MB, SLOW_COPIES and SLOW_MIB make less of it
# make mutants   changes what decides, folds and lands, and looks whether a test fails
#
# Everything is installed into .venv, once; ARGS goes to the command: make demo ARGS="--rounds 5".
# Tests wait more than they work: four at a time halve the time that two cores need.
# Real processes on a busy machine miss even generous limits at times: what fails is run again, and
# the summary names it.

# Processes are started by the hundred: where this is set, each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
ARGS =

.PHONY: demo test slow check mutants clean system clients
# Which of them, as mutmut names them: '*' for all takes hours; tests/mutation says what to expect.
MUTANTS = dataplane.duties*

demo: $(VENV)/installed
	@$(BIN)/dataplane demo $(ARGS)

test: $(VENV)/installed-dev system clients
	@$(BIN)/python -m pytest -n 4 --dist worksteal --reruns 2 --rerun-show-tracebacks -rfE $(ARGS)

SLOW_MB = 500
SLOW_COPIES = 10
SLOW_MIB = 5120
SLOW = $(BIN)/python -m pytest --timeout 3600 $(ARGS)
CONTRACT = tests/contract
FLAT = $(CONTRACT)/test_transport.py::test_p12_memory_does_not_grow_with_the_file
# Memory is measured in a process of its own for each transport.
slow: $(VENV)/installed-dev system clients
	DATAPLANE_CUT_MB=$(SLOW_MB) DATAPLANE_COPIES=$(SLOW_COPIES) $(SLOW) \
	  $(CONTRACT)/test_chain_of_transports.py $(CONTRACT)/test_live_database.py
	for rig in p2p http "http over a socket each" rsync base64 s3; do \
	  DATAPLANE_SPARSE_MIB=$(SLOW_MIB) $(SLOW) "$(FLAT)[$$rig]" || exit 1; done

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --exclude '*.md' .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: $(VENV)/installed-dev
	nice -n 19 $(BIN)/python -m tests.mutation $(foreach name,$(MUTANTS),'$(name)') $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
	rm -rf mutants .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says what was installed last; a changed pyproject.toml installs again.
$(VENV)/installed: pyproject.toml | $(BIN)/pip
	@echo "installing into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/pip
	@echo "installing into $(VENV), with what the tests need"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/installed

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "there is no $(PYTHON); install Python 3.11 or later, or: make PYTHON=/path/to/python" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) is too old; use 3.11 or later: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "$(PYTHON) can't make $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }

# rsync, the ssh client and an ssh server, for the tests that move bytes by them; a browser for
# those that look at the page.
system:
	@missing=; \
	command -v rsync >/dev/null 2>&1 || missing="$$missing rsync"; \
	command -v ssh >/dev/null 2>&1 || missing="$$missing openssh-client"; \
	PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null 2>&1 || missing="$$missing openssh-server"; \
	command -v chromium >/dev/null 2>&1 || missing="$$missing chromium"; \
	command -v npm >/dev/null 2>&1 || missing="$$missing nodejs npm"; \
	[ -z "$$missing" ] && exit 0; \
	if ! command -v apt-get >/dev/null 2>&1; then \
	  echo "missing:$$missing; install them with this system's package manager" >&2; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then become=; \
	elif sudo -n true 2>/dev/null; then become=sudo; \
	else \
	  echo "missing:$$missing; as root: apt-get install$$missing" >&2; exit 1; \
	fi; \
	echo "installing$$missing"; \
	$$become apt-get update -qq && $$become apt-get install -qq -y --no-install-recommends $$missing >/dev/null

# Clients of the bus that are not ours: the nats command where there is Go, which a gate must have,
# and the packages of a Node.js client.
clients: $(VENV)/installed-dev system
	@[ -x $(BIN)/nats ] || command -v nats >/dev/null 2>&1 || \
	if command -v go >/dev/null 2>&1; then \
	  echo "building the nats command into $(BIN)"; \
	  GOBIN="$(abspath $(BIN))" GOFLAGS=-trimpath go install github.com/nats-io/natscli/nats@latest; \
	elif [ -n "$$CI" ]; then echo "there is no go to build the nats command with" >&2; exit 1; \
	else echo "no go here: the tests of the nats command are left out"; fi
	@cmp -s tests/node/package.json $(VENV)/node/package.json || { \
	  mkdir -p $(VENV)/node && cp tests/node/package.json $(VENV)/node/ && \
	  npm install --prefix $(VENV)/node --no-audit --no-fund --silent; }
