# make install, make uninstall: everything in place below DESTDIR, with nothing left to download.
#
# The Python packages are the daemon's own, below $(PREFIX)/lib/optpolined: what the system has or
# lacks does not matter, but for INSTALL_PYTHON, which must be there on the host that it is for.

PREFIX ?= /usr/local
DESTDIR ?=
INSTALL_PYTHON ?= /usr/bin/python3

LIB_DIR := $(PREFIX)/lib/optpolined
UNIT_DIR := $(PREFIX)/lib/systemd/system
DOC_DIR := $(PREFIX)/share/doc/optpolined
SHARE_DIR := $(PREFIX)/share/optpolined
MAN_DIR := $(PREFIX)/share/man
MODULE_VERSION := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' guest/module/dkms.conf)
# Where dkms looks, whatever PREFIX is.
MODULE_DIR := /usr/src/optpoline-$(MODULE_VERSION)
PUT := install -D -m 644

# What `make docs` makes, and what is in configs/.
BASH_COMPLETIONS = $(wildcard build/completions/*.bash)
ZSH_COMPLETIONS = $(wildcard build/completions/_*)
FISH_COMPLETIONS = $(wildcard build/completions/*.fish)
MAN_PAGES = $(wildcard build/man/*.[1-8])
SHARED = $(wildcard configs/prometheus/*.yml configs/grafana/*.yml configs/grafana/dashboards/*.json)

define INSTALLED_COMMAND
#!$(INSTALL_PYTHON) -I
import sys

sys.path.insert(0, "$(LIB_DIR)")
from optpolined.MODULE import main  # noqa: E402

sys.exit(main())
endef
export INSTALLED_COMMAND

.PHONY: install uninstall

install: setup $(if $(wildcard docs/build.py),docs)
	@echo 'install: Python packages into $(DESTDIR)$(LIB_DIR) (half a minute)'
	@rm -rf '$(DESTDIR)$(LIB_DIR)'
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes --no-deps --no-compile \
		--only-binary :all: --target '$(DESTDIR)$(LIB_DIR)' -r requirements-run.lock \
		--python-version $$($(INSTALL_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	@cd daemon && find optpolined -type f ! -name '*.pyc' | while read -r file; do \
		$(PUT) "$$file" "$(DESTDIR)$(LIB_DIR)/$$file"; \
	done
	@$(INSTALL_PYTHON) -m compileall -q -s '$(DESTDIR)' '$(DESTDIR)$(LIB_DIR)'
	@echo 'install: commands into $(DESTDIR)$(PREFIX)/bin, units into $(DESTDIR)$(UNIT_DIR)'
	@for name in optpolined:cli optpolinectl:ctl; do \
		command='$(DESTDIR)$(PREFIX)/bin/'$${name%:*}; \
		install -d '$(DESTDIR)$(PREFIX)/bin'; \
		printf '%s\n' "$$INSTALLED_COMMAND" | sed "s/MODULE/$${name#*:}/" >"$$command"; \
		chmod 755 "$$command"; \
	done
	@for unit in configs/systemd/*; do \
		sed 's,/usr/\(bin/optpoline\|share/doc/\),$(PREFIX)/\1,' "$$unit" \
			| $(PUT) /dev/stdin '$(DESTDIR)$(UNIT_DIR)/'$${unit##*/}; \
	done
	@echo 'install: documentation, examples, the guest module for dkms'
	@install -d '$(DESTDIR)/etc/optpolined'
	@$(PUT) configs/README.md '$(DESTDIR)$(DOC_DIR)/configs.md'
	@$(PUT) README.md '$(DESTDIR)$(DOC_DIR)/README.md'
	@$(PUT) configs/guests/vm1.toml '$(DESTDIR)$(DOC_DIR)/examples/vm1.toml'
	@for file in guest/module/*; do $(PUT) "$$file" '$(DESTDIR)$(MODULE_DIR)/'$${file##*/}; done
	@for file in $(MAN_PAGES); do \
		$(PUT) "$$file" "$(DESTDIR)$(MAN_DIR)/man$${file##*.}/$${file##*/}"; done
	@for file in $(BASH_COMPLETIONS); do name=$${file##*/}; \
		$(PUT) "$$file" "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/$${name%.bash}"; done
	@for file in $(ZSH_COMPLETIONS); do \
		$(PUT) "$$file" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/$${file##*/}"; done
	@for file in $(FISH_COMPLETIONS); do \
		$(PUT) "$$file" "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/$${file##*/}"; done
	@for file in $(SHARED); do $(PUT) "$$file" "$(DESTDIR)$(SHARE_DIR)/$${file#configs/}"; done

# Settings in /etc/optpolined stay, and so does /var/lib/optpolined.
uninstall:
	@echo 'uninstall: all of it but /etc/optpolined and /var/lib/optpolined'
	@rm -rf '$(DESTDIR)$(LIB_DIR)' '$(DESTDIR)$(DOC_DIR)' '$(DESTDIR)$(SHARE_DIR)' \
		'$(DESTDIR)$(MODULE_DIR)'
	@rm -f '$(DESTDIR)$(PREFIX)'/bin/optpolined '$(DESTDIR)$(PREFIX)'/bin/optpolinectl \
		'$(DESTDIR)$(UNIT_DIR)'/optpolined@.service '$(DESTDIR)$(UNIT_DIR)'/optpolined.target \
		'$(DESTDIR)$(MAN_DIR)'/man[1-8]/optpoline* \
		'$(DESTDIR)$(PREFIX)'/share/bash-completion/completions/optpoline* \
		'$(DESTDIR)$(PREFIX)'/share/zsh/site-functions/_optpoline* \
		'$(DESTDIR)$(PREFIX)'/share/fish/vendor_completions.d/optpoline*
