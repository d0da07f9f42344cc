# One name for each habit.
.PHONY: check test bench peer kernels gpu fixtures

check: ## everything CI does
	.ci/run

test:
	cargo test --release

bench:
	cargo bench

peer: ## beside PyTorch; needs torch
	cargo build --release --example step
	python3 benches/peer/compare.py

kernels: ## registers and instructions of every kernel
	scripts/check-kernels

gpu: ## judge and time on this machine's GPU; needs nvcc, and torch for the peers
	scripts/gpu-check pack target/gpu-check
	target/gpu-check/gpu-check run --out target/gpu-check.json

fixtures: ## rewrite what PyTorch says; needs torch
	python3 fixtures/export.py
