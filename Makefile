# Everything here is also a plain go command; this is the list of them.
.DEFAULT_GOAL := help
.PHONY: help build test race interop check fuzz bench docs quickstart fmt clean

# How long make fuzz runs each target.
FUZZTIME ?= 5s

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build ./countersign, one static binary
	CGO_ENABLED=0 go build -trimpath -o countersign ./cmd/countersign

quickstart: ## make a PKI, backends and a configuration under ./quickstart and run it all
	go run ./cmd/countersign quickstart

test: ## run the tests: no root, no network, no fixed ports
	go test ./...
	@echo "passed. There is more: make race (data races), make interop (curl, nginx, HAProxy, ...), make fuzz, make bench; make check does what CI does."

race: ## run the tests with the race detector
	go test -race -timeout 15m ./...

interop: ## run the program against curl, OpenSSL, GnuTLS, nginx, HAProxy, Python and Node
	cd interop && go test -count=1 -timeout 5m ./...

check: ## run what CI runs (as root it installs the Debian packages that are missing)
	bash .ci/run

fuzz: ## run every fuzz target for FUZZTIME (5s)
	bash .ci/fuzz $(FUZZTIME)

bench: ## run the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

docs: ## write docs/reasons.md, docs/dependencies.md and api/config.schema.json again
	mkdir -p docs
	go run ./cmd/countersign reasons > docs/reasons.md.new && mv docs/reasons.md.new docs/reasons.md
	go test -count=1 -run '^TestDependenciesPage$$' . -args -update
	go test -count=1 -run '^TestSchema$$' ./internal/config -args -update

fmt: ## format the code
	gofmt -w .

clean: ## remove ./countersign and ./quickstart
	rm -rf countersign quickstart
