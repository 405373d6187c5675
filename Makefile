# One profile (dev, with optimised dependencies) serves demo, tests and benches, so that DataFusion is built once.

SHELL := /usr/bin/env bash
CARGO ?= cargo
# What `make demo`, `make bench` hand on: make demo ARGS="--postgres postgres://..."
ARGS ?=
# nextest's profile: default, ci or long (.config/nextest.toml).
PROFILE ?= $(if $(CI),ci,default)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-long check gate fmt-check clippy deny tidy doctest nextest bench features

help: ## lists what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## installs what the tests need and this machine lacks
	@testkit/setup.sh test

demo: ## builds, then makes a project with a year of flights and computes every day of it
	@testkit/setup.sh build
	$(CARGO) run -p headworks -- demo $(ARGS)

test: setup gate nextest ## everything that must be green before a change lands: check and all tests

check: gate tidy ## the quick gate: format, lints, licences, doc examples, layering

# What both have; the layering is among the tests.
gate: fmt-check clippy deny doctest

fmt-check:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

# Advisories need a database from the network, and so are no part of this.
deny:
	$(CARGO) deny --workspace check --hide-inclusion-graph licenses bans sources

tidy:
	$(CARGO) nextest run -p headworks-testkit -E 'binary(it)'

# The examples in the docs.
doctest:
	$(CARGO) test --quiet --doc --workspace

nextest:
	$(CARGO) nextest run --workspace --profile $(PROFILE)

test-long: setup ## the tests that take minutes too: kills, many writers, power of ten sizes; what they say goes to target/test-long.log
	set -o pipefail; $(CARGO) nextest run --workspace --profile long --run-ignored all --success-output final 2>&1 | tee target/test-long.log

bench: ## the workloads beside their references, one run
	@testkit/setup.sh test
	$(CARGO) build -p headworks
	$(CARGO) run -p headworks-bench -- $(ARGS)

.PHONY: bench-queries
bench-queries: ## the query service beside DuckDB and PostgreSQL, as a release build: its first run compiles for half an hour
	@testkit/setup.sh test
	$(CARGO) build --release -p headworks -p headworks-bench
	target/release/headworks-bench $(if $(ARGS),$(ARGS),tpch large serving cached clients)

.PHONY: bench-airflow
bench-airflow: ## installs Airflow and measures it on the orchestrator's workloads; half an hour, most of it waiting
	python3 bench/airflow/run.py $(ARGS)

features: ## writes crates/features anew after a dependency changed
	@python3 testkit/features.py
