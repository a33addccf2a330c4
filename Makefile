# Everything here runs on a Linux machine with Rust, a C compiler and Python 3, as any user, offline once it has
# run. It stays within target/ and temporary folders, but for the control plane of test-kubernetes, which is built
# once for all clones.

export CARGO_TARGET_DIR := $(CURDIR)/target
CARGO := cargo
# Returns when everything that the command started has ended.
RUN := python3 tests/support/run.py
# Most tests wait for servers, and for leases to end.
export RUST_TEST_THREADS ?= 14
# Of PostgreSQL. All tests run on the first of them, the end-to-end ones on each.
MAJORS := 18 14
CARGO_FUZZ := 0.13.2
demo up: MAJORS := 18
test-all: MAJORS := 18 17 16 15 14
# What is between Vault, the pod, the application and pglease is the same whatever server is behind it: once is enough.
test: ON_FURTHER_MAJORS := $(addprefix --skip ,clients:: operators:: addresses:: admin:: floods:: injector:: machine:: \
	mounts:: pressure:: replay:: secrets:: start:: trouble:: \
	$(addsuffix ::,$(addprefix scenarios::,crash drain login outage quota renewal routes tokens vault)))

define run-tests
@$(CARGO) test --locked --no-run
@PGLEASE_TEST_PG=$(firstword $(MAJORS)) $(RUN) $(CARGO) test --quiet --locked
@for major in $(wordlist 2,$(words $(MAJORS)),$(MAJORS)); do \
	echo "PostgreSQL $$major"; \
	PGLEASE_TEST_PG=$$major $(RUN) $(CARGO) test --quiet --locked --test e2e -- $(ON_FURTHER_MAJORS) || exit 1; \
done
endef

.PHONY: help demo up test test-all test-long test-image test-kubernetes test-browser test-monitoring bench bench-quick bench-doc bench-micro bench-fleet bench-admission bench-ready order fuzz check fmt servers clients

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24

demo: servers ## an application without a password for 45 s, and the proof that nothing is left of it
	@$(CARGO) build --locked --bin pglease --example demo
	@$(RUN) $(CARGO) run --quiet --locked --example demo

up: servers ## the same servers and proxy to connect to with psql, until Ctrl-C
	@$(CARGO) build --locked --bin pglease --example demo
	@$(RUN) $(CARGO) run --quiet --locked --example demo -- up

test: servers clients ## every test on PostgreSQL 18, and on 14 what a server has a part in
	$(run-tests)

test-all: servers clients ## every test, the end-to-end ones on every PostgreSQL, and those that take minutes
	$(run-tests)
	@$(MAKE) --no-print-directory test-long test-image

# Few side by side: they measure, or put a load on the machine.
test-long: MAJORS := 18
test-long: servers ## those that take minutes alone, up to 25 in all; their figures stay in target/long
	@$(CARGO) test --locked --no-run --test long
	@RUST_TEST_THREADS=3 $(RUN) $(CARGO) test --quiet --locked --test long
	@cat target/long/*.txt

test-image: MAJORS := 18
test-image: servers ## the image's content, run in an empty root directory; as root, else in part
	@$(CARGO) test --locked --no-run --test image
	@$(RUN) $(CARGO) test --quiet --locked --test image

# The first time the control plane is built, which takes minutes, and says how far it is.
test-kubernetes: MAJORS := 18
test-kubernetes: servers ## those on a real Kubernetes control plane: API server, etcd, controllers, Helm
	@python3 tests/kubernetes/build.py >/dev/null
	@$(CARGO) test --locked --no-run --test kubernetes
	@RUST_TEST_THREADS=4 $(RUN) $(CARGO) test --quiet --locked --test kubernetes

# The pictures that it takes stay in target/browser.
test-browser: MAJORS := 18
test-browser: servers ## the page for people in Chromium, on a phone and on a desk; skipped where there is none
	@$(CARGO) test --locked --no-run --test browser
	@RUST_TEST_THREADS=4 $(RUN) $(CARGO) test --quiet --locked --test browser

test-monitoring: MAJORS := 18
test-monitoring: servers ## metrics and alerts by Prometheus's own tool, which it gets where it can
	@python3 tests/monitoring/promtool.py --fetch >/dev/null
	@$(CARGO) test --locked --no-run --test docs --test e2e
	@$(RUN) $(CARGO) test --quiet --locked --test docs
	@$(RUN) $(CARGO) test --quiet --locked --test e2e -- operators::alerts:: operators::trouble::

bench: MAJORS := 18
bench: servers ## pglease beside no proxy, HAProxy and PgBouncer: half an hour; ARGS="--help" has the rest
	@$(CARGO) bench --quiet --locked --bench performance -- $(ARGS)

bench-quick: MAJORS := 18
bench-quick: servers ## the same in under 3 minutes, once it is built
	@$(CARGO) bench --quiet --locked --bench performance -- --quick $(ARGS)

bench-doc: ## fills docs/performance.md with what `make bench` has measured
	@$(CARGO) bench --quiet --locked --bench performance -- --doc

bench-micro: ## what scanner, startup, SCRAM and schedule take by themselves
	@$(CARGO) bench --quiet --locked --bench micro

bench-fleet: ## a day of 100,000 instances, simulated: requests to Vault per pod and hour, and how evenly they come
	@$(CARGO) bench --quiet --locked --bench fleet

bench-admission: ## 100 reviews a second over HTTPS: p50 and p99 of the injector, three rounds of 30 s
	@$(CARGO) bench --quiet --locked --bench admission

bench-ready: MAJORS := 18
bench-ready: servers ## start of a sidecar to its readiness, on real servers: shortest, median and longest of 20
	@$(CARGO) bench --quiet --locked --bench ready

# The demo takes the program beside its own folder: there it is one that runs the image's and looks what that calls.
order: MAJORS := 18
order: ORDER := $(CURDIR)/target/order
order: servers ## which functions come first in the image's program, deploy/order.ld: those that `make demo` needs
	@$(CARGO) build --locked --bin pglease --example demo
	@mkdir -p $(ORDER)/examples
	@cp target/debug/examples/demo $(ORDER)/examples
	@program=$$(deploy/build.sh release -C link-arg=-Wl,-Map=$(ORDER)/map) && python=$$(python3 -c 'import sys; print(sys.executable)') && \
		printf '#!/bin/sh\nexec %s %s %s %s %s "$$@"\n' "$$python" $(CURDIR)/deploy/order.py $(CURDIR)/deploy/order.ld \
		$(ORDER)/map "$$program" >$(ORDER)/pglease
	@chmod +x $(ORDER)/pglease
	@$(RUN) $(ORDER)/examples/demo

# Of each target, in seconds; all of them run side by side.
FUZZ_TIME ?= 900
FUZZ_TARGETS := $(basename $(notdir $(wildcard tests/fuzz/targets/*.rs)))
FUZZ := env -u CARGO_TARGET_DIR target/tools/bin/cargo-fuzz fuzz
fuzz: ## coverage-guided fuzzing of everything that reads what others write; needs a C++ compiler
	@target/tools/bin/cargo-fuzz --version 2>/dev/null | grep -qx "cargo-fuzz $(CARGO_FUZZ)" || env -u CARGO_TARGET_DIR \
		$(CARGO) install --locked --root target/tools cargo-fuzz@$(CARGO_FUZZ)
	@$(FUZZ) build --fuzz-dir tests/fuzz --sanitizer none --target-dir target/fuzz
	@python3 tests/fuzz/run.py $(FUZZ_TIME) $(FUZZ_TARGETS)

check: ## what CI looks at before the tests: format, lints, docs
	@$(CARGO) fmt --check
	@$(CARGO) clippy --quiet --locked --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --locked --no-deps --document-private-items

fmt: ## formats the code
	@$(CARGO) fmt

# What the system lacks is named here, before anything is built.
servers:
	@command -v python3 >/dev/null || { echo "python3 is missing: apt-get install -y python3 python3-pip"; exit 1; }
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: see https://rustup.rs"; exit 1; }
	@python3 tests/support/fetch.py $(MAJORS) >/dev/null

# Before the tests, some of which measure: what is installed or built the first time takes a few minutes.
clients:
	@for language in python java rust node go; do \
		python3 tests/clients/install.py $$language >/dev/null || exit 1; \
	done
