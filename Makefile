# `make test` is the one test command: it installs what it needs, builds, and runs everything.

CARGO ?= cargo
JOBS ?= $(shell nproc)
CXX ?= g++
ASAN = $(shell $(CXX) -print-file-name=libasan.so)
UBSAN = $(shell $(CXX) -print-file-name=libubsan.so)
# Example engines that are built and tested with the C++ tests.
ENGINES = -DSINKCACHE_BUILD_LLAMA=ON -DSINKCACHE_BUILD_INFLIGHT=ON
# Cargo's own folder: what cargo has built there is not built again.
RELEASE = -DCMAKE_BUILD_TYPE=Release -DSINKCACHE_CARGO_TARGET_DIR=$(CURDIR)/target
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

.PHONY: test setup lint rust-test stream-test shim mutants cpp-test cpp-sanitize rust-asan neon-test cuda-test cuda-variants \
	cuda-cubins cuda-engine gpu-bench-test header bench gpu-pack clean \
	rust-asan-some rust-asan-others

test: setup lint rust-test stream-test shim mutants cpp-test cpp-sanitize rust-asan neon-test cuda-test cuda-variants cuda-cubins \
	cuda-engine gpu-bench-test
	@echo "all tests passed"

setup:
	scripts/setup

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

# Header drift is one of these tests; the distribution of the random histories is part of the output.
rust-test:
	$(CARGO) test -p sinkcache -- --show-output

# Release: the tests run a real model.
stream-test:
	$(CARGO) test -p sinkcache-stream --release

# A CUDA driver and compiler that run the kernels on the CPU.
shim:
	tools/cuda_shim/build.sh build/shim
	build/shim/self_test --gtest_brief=1

# Named mistakes in a copy of the sources, each of which the tests must catch.
mutants: shim
	python3 scripts/mutants.py

# With the llama.cpp adapter: llama.cpp is built once for a machine and kept in ~/.cache/sinkcache (SINKCACHE_LLAMA_DIR).
cpp-test:
	cmake -S . -B build -G Ninja $(RELEASE) $(ENGINES)
	cmake --build build -j $(JOBS)
	ctest --test-dir build --output-on-failure -j $(JOBS)

# The Rust library is instrumented too, and checks its arithmetic for overflow.
cpp-sanitize:
	cmake -S . -B build-sanitize -G Ninja -DCMAKE_BUILD_TYPE=Debug -DSINKCACHE_SANITIZE=address,undefined \
		$(ENGINES) -DSINKCACHE_CARGO_TARGET_DIR=$(CURDIR)/target/asan -DSINKCACHE_CARGO_TARGET=$(HOST) \
		"-DSINKCACHE_CARGO_ENV=RUSTC_BOOTSTRAP=1;RUSTFLAGS=-Zsanitizer=address"
	cmake --build build-sanitize -j $(JOBS)
	ctest --test-dir build-sanitize --output-on-failure -j $(JOBS)

# AddressSanitizer is in the toolchain, its switch is not yet stable: hence the variable. It is slow: fewer histories than rust-test has,
# shorter windows (still of three spans), and each vector in each way from one start, not four. Half of the programs beside the others.
ASAN_TEST = RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" SKC_HISTORIES=1500 SKC_WINDOW=1030 SKC_STARTS=1 CARGO_TARGET_DIR=target/asan \
	$(CARGO) test -p sinkcache --target $(HOST)
ASAN_SOME = --lib --test instruction_sets --test edges --test teams --test allocations
ASAN_OTHERS = --test vectors --test histories
rust-asan:
	$(ASAN_TEST) --no-run $(ASAN_SOME) $(ASAN_OTHERS)
	$(MAKE) --no-print-directory -j2 --output-sync=target rust-asan-some rust-asan-others

rust-asan-some:
	$(ASAN_TEST) $(ASAN_SOME)

rust-asan-others:
	$(ASAN_TEST) $(ASAN_OTHERS)

# AArch64 and its NEON rung, under QEMU. Skipped, and says so, where Rust's target cannot be had.
neon-test:
	CARGO="$(CARGO)" scripts/neon_test

# The CUDA backend without a GPU: slot arithmetic, then everything that `scripts/gpu_check` checks, kernels and driver under
# ASan and UBSan, then a C++ host with device pointers.
cuda-test: shim gpu-pack
	SKC_SHIM_LIBS=$(CURDIR)/build/shim $(CARGO) test -p sinkcache --test ring_on_device
	tools/cuda_shim/build.sh build/shim-sanitize sanitize
	SINKCACHE_CUDA_CACHE_DIR= SKC_SHIM_CACHE=$(CURDIR)/build/shim-kernels ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		scripts/gpu_check build/gpu_check --jobs $(JOBS) --shim build/shim-sanitize --preload "$(ASAN):$(UBSAN)" --json build/gpu_check/shim.json
	cmake -S . -B build -G Ninja $(RELEASE) $(ENGINES)
	cmake --build build -j $(JOBS)
	LD_LIBRARY_PATH=$(CURDIR)/build/shim:$$LD_LIBRARY_PATH ctest --test-dir build --output-on-failure -R cuda

# PyTorch for the tests of benches/gpu: about 2 GB, a minute, once.
build/torch/complete: benches/gpu/requirements.txt
	python3 -m venv build/torch
	build/torch/bin/pip install --quiet --no-deps --no-compile -r $<
	touch $@

# The benchmarks for a GPU, without one: what they promise, all contenders on the CPU from the packed folder, the library's half on
# the stand-in (NVIDIA's compiler, which PyTorch brings along, does not work with it), and the table of predictions.
GPU_BENCH = SINKCACHE_LIBRARY=$(CURDIR)/build/gpu_check/libsinkcache.so PYTHONDONTWRITEBYTECODE=1
gpu-bench-test: shim gpu-pack build/torch/complete
	python3 benches/gpu/floors.py
	$(GPU_BENCH) build/torch/bin/python -W ignore benches/gpu/self_test.py
	$(GPU_BENCH) PYTHON=$(CURDIR)/build/torch/bin/python GO_DEVICE=cpu GO_OPTIONS="--smoke --strict --seconds 0.02 --limit 0" \
		GO_LLAMA_OPTIONS="--tiny --seconds 0.05" build/gpu_check/benches/gpu/go build/gpu-bench/cpu 600
	$(GPU_BENCH) LD_LIBRARY_PATH=$(CURDIR)/build/shim SINKCACHE_NVRTC_DIR=$(CURDIR)/build/shim SINKCACHE_CUDA_CACHE_DIR= \
		SKC_SHIM_CACHE=$(CURDIR)/build/shim-kernels build/torch/bin/python -W ignore benches/gpu/run.py --device shim --smoke --strict \
		--seconds 0.01 --limit 0 --out build/gpu-bench/shim

# What a machine with a GPU needs, in a folder that stands by itself: `build/gpu_check/benches/gpu/go OUT` there.
gpu-pack:
	scripts/gpu_check --pack build/gpu_check

# Every architecture, without a GPU: no spills, and the committed table of registers is current.
cuda-variants:
	scripts/cuda_variants.py

# Kernels that are built in: by NVIDIA's compiler for two architectures, and on the stand-in where there is no compiler.
cuda-cubins: shim
	SINKCACHE_NVRTC_DIR=$(CURDIR)/build/shim SINKCACHE_CUBIN_ARCHS=80,90 SINKCACHE_CUBIN_SHAPES=128x1:bf16,64x2:bf16 \
		SKC_SHIM_CACHE=$(CURDIR)/build/shim-kernels $(CARGO) clippy -p sinkcache --features cubins --all-targets -- -D warnings
	SKC_SHIM_CACHE=$(CURDIR)/build/shim-kernels scripts/cuda_cubins.py build/shim

# The CUDA half of examples/inflight by nvcc from PyPI, for every architecture: it compiles and links.
cuda-engine:
	scripts/cuda_engine build-cuda

header:
	SKC_WRITE_HEADER=1 $(CARGO) test -p sinkcache --test header

bench:
	$(CARGO) bench -p sinkcache

clean:
	$(CARGO) clean
	rm -rf build build-sanitize build-cuda
