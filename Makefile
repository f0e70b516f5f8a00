# Everything here is also a plain go command; this is the list of them.
.DEFAULT_GOAL := help
.PHONY: help build test race interop eventloop check fuzz microbench bench bench-quick bench-debian pgo docs quickstart fmt clean

# How long make fuzz runs each target.
FUZZTIME ?= 5s

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build ./countersign, one static binary
	CGO_ENABLED=0 go build -trimpath -o countersign ./cmd/countersign

quickstart: ## make a PKI, backends and a configuration under ./quickstart and run it all
	go run ./cmd/countersign quickstart

test: ## run the tests: no root, no network, no fixed ports
	go test -pgo=off -parallel 6 ./...
	@echo "passed. There is more: make race (data races), make interop (curl, nginx, HAProxy, ...), make fuzz, make bench; make check does what CI does."

race: ## run the tests with the race detector
	go test -pgo=off -race -timeout 15m ./...

interop: ## run the program against curl, OpenSSL, GnuTLS, nginx, HAProxy, Python and Node
	cd interop && go test -count=1 -timeout 10m ./...

eventloop: ## run the daemon's and the interoperability tests with experimental.event_loop (30 min)
	go test -pgo=off -timeout 25m ./internal/daemon -eventloop
	cd interop && go test -count=1 -timeout 20m . -eventloop

check: ## run what CI runs (as root it installs the Debian packages that are missing)
	bash .ci/run

fuzz: ## run every fuzz target for FUZZTIME (5s)
	bash .ci/fuzz $(FUZZTIME)

microbench: ## run the Go benchmarks: time and allocations of single parts
	go test -run '^$$' -bench . -benchmem ./...

# What make bench and make pgo keep: profiles, and peers that are built.
BENCHCACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/countersign-bench

bench: ## measure beside HAProxy, nginx, Caddy and Traefik, 25 minutes (docs/performance.md); BENCH="-only handshake"
	cd bench && go run . -keep ../docs/benchmarks -profile "$(BENCHCACHE)/profiles" $(BENCH)

bench-quick: ## the same in two minutes, for a look: writes nothing
	cd bench && go run . -quick $(BENCH)

bench-debian: ## newer HAProxy and nginx in a folder, for make bench (root, debootstrap)
	debootstrap --variant=minbase --include=haproxy,nginx-light,libnginx-mod-stream sid "$(BENCHCACHE)/sid"

pgo: ## write cmd/countersign/default.pgo again, which go build uses, from profiles of a mixed load (3 minutes)
	cd bench && go run . -only mixed -targets countersign -rounds 0 -secs 5 -profile "$(BENCHCACHE)/pgo"
	cp "$(BENCHCACHE)/pgo/merged.pprof" cmd/countersign/default.pgo

docs: ## write docs/reasons.md, docs/dependencies.md, docs/metrics.md, the table in docs/policy.md and api/config.schema.json again
	mkdir -p docs
	go run ./cmd/countersign reasons > docs/reasons.md.new && mv docs/reasons.md.new docs/reasons.md
	go test -count=1 -run '^Test(Dependencies|Policy)Page$$' . -args -update
	go test -count=1 -run '^TestSchema$$' ./internal/config -args -update
	go test -count=1 -run '^TestMetricsPage$$' ./internal/daemon -args -update-metrics

fmt: ## format the code
	gofmt -w .

clean: ## remove ./countersign and ./quickstart
	rm -rf countersign quickstart
