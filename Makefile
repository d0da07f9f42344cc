# One name for each habit.
.PHONY: check test bench peer fixtures

check: ## everything CI does
	.ci/run

test:
	cargo test --release

bench:
	cargo bench

peer: ## beside PyTorch; needs torch
	cargo build --release --example step
	python3 benches/peer/compare.py

fixtures: ## rewrite what PyTorch says; needs torch
	python3 fixtures/export.py
