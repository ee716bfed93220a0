# SPDX-License-Identifier: GPL-2.0-or-later
#
# On a fresh Debian 12: "make demo", or "make test".  Only the apt packages need root
# or sudo; no kernel package is ever installed.

PYTHON ?= python3
MINUTES ?= 10
KERNEL ?= cloud

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
APT_PACKAGES := busybox-static g++ gcc gcc-12-plugin-dev libc6-dev libelf1 lz4 make python3-venv \
	qemu-system-x86 xz-utils
TEST_PACKAGES := chromium e2fsprogs fish man-db mmdebstrap systemd tcsh tmux zsh
KERNEL_PACKAGES := bc bison flex libelf-dev patch perl

.PHONY: help setup apt image guest-kernel demo demo-seed docs dashboards
.PHONY: tools test test-unit test-model model-deep test-hostile nightly test-guest test-browser
.PHONY: test-systemd test-observability test-crash soak
.PHONY: bench bench-forms bench-learning bench-scrape house lint lock clean

help:
	@echo 'make setup       install apt packages, and the packages of requirements.lock into .venv'
	@echo 'make image       build the small guests that demo and tests boot'
	@echo 'make guest-kernel build a kernel with our gcc plugin, ten minutes on two idle CPUs'
	@echo 'make demo        run the daemon on a guest under load, about two minutes;'
	@echo '                 KERNEL=plugin uses the kernel of make guest-kernel'
	@echo 'make demo-seed   run each system of the seed mail on a guest, some minutes'
	@echo 'make test        run lint and all tests'
	@echo 'make test-unit   run the tests that need no QEMU'
	@echo 'make test-browser test the status page in Chromium, a minute'
	@echo 'make test-model  check the poke protocol under every interleaving, about a minute'
	@echo 'make model-deep  check it with more vCPUs, tasks and functions, some minutes'
	@echo 'make test-hostile test against guests and peers that lie, 2,000 examples a surface'
	@echo 'make nightly     the same with 50,000 new examples a surface, about an hour'
	@echo 'make test-guest  run the tests that boot guests'
	@echo 'make test-systemd test the unit under a real systemd, in a guest that runs a guest'
	@echo 'make test-observability run Prometheus on a guest and fire each alert, some minutes'
	@echo 'make test-crash  kill the daemon at every packet of its work, about half an hour'
	@echo 'make soak        change sites without pause for MINUTES=10'
	@echo 'make bench-forms measure what a call costs in each form, natively, one or two minutes'
	@echo 'make bench-learning measure what a decision on 20,000 sites costs, a minute or two'
	@echo 'make bench-scrape measure what a scrape of 8,000 sites costs the daemon, seconds'
	@echo 'make bench       run bench-forms, bench-learning and bench-scrape'
	@echo 'make docs        write man pages and shell completions to build/man and build/completions'
	@echo 'make dashboards  write the Grafana dashboards from configs/grafana/*.py'
	@echo 'make install     install into DESTDIR=, below PREFIX=/usr/local; make uninstall'
	@echo 'make house       draw the rooms of the daemon, and the imports between them'
	@echo 'make lint        run ruff and mypy'
	@echo 'make lock        pin the newest Python packages that pyproject.toml allows'
	@echo 'make clean       remove build/, .venv and caches'

setup: apt $(BIN)/installed

# Asks dpkg each time, which is quick, and apt only where a package is missing.  An old package list
# may name versions that are gone, so there is a second try after an update.
apt:
	@missing=; for package in $(APT_PACKAGES); do \
		dpkg-query -W -f '$${db:Status-Abbrev}' $$package 2>/dev/null | grep -q ^ii \
			|| missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	mkdir -p build; \
	echo "setup: apt packages$$missing (about a minute; build/apt.log)"; \
	install() { \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
			-o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 $$missing; \
	}; \
	{ install || { $$as_root apt-get update && install; }; } >build/apt.log 2>&1 \
		|| { tail -n 20 build/apt.log; exit 1; }

$(BIN)/locked: requirements.lock | apt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		f"setup: {sys.executable} is older than Python 3.11: make PYTHON=...")'
	@echo 'setup: Python packages into .venv (about a minute)'
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(BIN)/installed: $(BIN)/locked pyproject.toml
	@echo 'setup: optpolined into .venv'
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Only the benchmark needs matplotlib.
$(BIN)/benched: requirements-bench.lock $(BIN)/locked
	@echo 'bench: matplotlib into .venv'
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

image: setup
	@$(BIN)/python -m guest.image.build

# Only a kernel's build needs KERNEL_PACKAGES.
guest-kernel: setup
	@$(MAKE) --no-print-directory apt APT_PACKAGES='$(KERNEL_PACKAGES)'
	@$(BIN)/python -m guest.image.kernel
	@$(BIN)/python -m guest.image.build --flavour plugin

demo: $(if $(filter plugin,$(KERNEL)),guest-kernel,image)
	@$(BIN)/python -m guest.demo --kernel $(KERNEL)

demo-seed: image
	@$(BIN)/python -m guest.seed_demo

# The programs that the tests run: a browser, a terminal, shells, tools to make another Debian.  The
# browser, for the status page, is the largest: 100 MB to fetch, 400 MB installed.
tools: setup
	@$(MAKE) --no-print-directory apt APT_PACKAGES='$(TEST_PACKAGES)'

test: lint image tools
	@$(BIN)/python -m tests.run

test-unit: image tools
	@$(PYTEST) tests/unit

test-browser: tools
	@$(PYTEST) tests/browser

test-model: setup
	@$(PYTEST) tests/model

model-deep: setup
	@$(PYTEST) tests/model/deep_protocols.py

test-hostile: setup
	@$(PYTEST) tests/hostile

nightly: setup
	@HYPOTHESIS_PROFILE=nightly $(PYTEST) tests/hostile

test-guest: image tools
	@$(PYTEST) tests/guest

test-systemd: image tools
	@$(PYTEST) tests/systemd

test-observability: image tools
	@$(PYTEST) $(wildcard tests/observability/test_*.py) tests/observability/all_alerts.py

test-crash: image
	@$(BIN)/python -m tests.guest.crash

soak: image
	@$(BIN)/python -m tests.guest.soak --minutes $(MINUTES) --calls $$(($(MINUTES) * 1000000))

bench: bench-forms bench-learning bench-scrape

bench-forms: image $(BIN)/benched
	@$(BIN)/python -m tests.bench

bench-learning: setup
	@$(BIN)/python -m tests.bench.learning

bench-scrape: setup
	@$(BIN)/python -m tests.bench.scrape

docs: setup
	@$(BIN)/python -m configs.manual.build

dashboards: setup
	@$(BIN)/python -m configs.grafana.generate

# Draws the daemon's rooms and their imports; fails where an import goes up or in a circle.
house: setup
	@$(BIN)/python -m tests.house

lint: setup
	@echo 'lint: ruff and mypy'
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy

# Pins the packages that build ours too, because setup builds it without an isolated environment.
lock:
	@$(PYTHON) -m venv --clear build/lock
	@build/lock/bin/pip install -qq --disable-pip-version-check uv
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb")) \
		["build-system"]["requires"], sep="\n")' \
	| build/lock/bin/uv pip compile --quiet --upgrade --generate-hashes --extra test \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml -
	@build/lock/bin/uv pip compile --quiet --upgrade --generate-hashes \
		--constraints requirements.lock \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--custom-compile-command 'make lock' --output-file requirements-run.lock pyproject.toml
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb")) \
		["project"]["optional-dependencies"]["bench"], sep="\n")' \
	| build/lock/bin/uv pip compile --quiet --upgrade --generate-hashes \
		--constraints requirements.lock \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--custom-compile-command 'make lock' --output-file requirements-bench.lock -

include configs/install.mk

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
