# Tests come in four tiers: check, test, test-all, nightly. A target of the name TIER-PART (all-PART for test-all) is
# one part of that tier; it runs by itself too. docs/testing.md says what each part does.

CARGO ?= cargo
JOBS ?= $(shell nproc)
CXX ?= g++
PYTHON ?= python3
# What is fetched or built once for a machine: llama.cpp, NVIDIA's compilers, PyTorch, vLLM.
CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sinkcache
export MAKE

CHECK = check-format check-text check-links check-cycles check-parameters check-commits check-scripts check-mutants \
	check-python check-predictions check-lint check-docs check-rust
TEST = test-setup test-rust test-stream test-cpp test-python test-cuda
ALL = all-llama all-llama-hosts all-inflight all-damaged-files all-sanitize-cpp all-sanitize-rust all-mutants \
	all-aarch64 all-emulated-isa all-cuda-sanitize all-ptx all-cuda-cubins all-cuda-variants all-cuda-nvcc \
	all-gpu-bench all-python all-notebook all-languages all-package all-abi all-fuzz all-loom all-valgrind \
	all-soak all-dependencies
NIGHTLY = nightly-histories nightly-snapshots nightly-soak nightly-damaged-files nightly-parking nightly-python \
	nightly-vllm nightly-candle nightly-sanitize-rust nightly-mutants nightly-mutation nightly-cuda-variants \
	nightly-ptx nightly-aarch64 nightly-third-party nightly-llama-hosts nightly-fuzz nightly-gpu-rehearsal nightly-tsan \
	nightly-loom nightly-miri nightly-valgrind nightly-life nightly-coverage nightly-fresh-machine
PARTS = $(CHECK) $(TEST) $(ALL) $(NIGHTLY)

.PHONY: help check test test-all nightly $(PARTS) setup-engines setup-aarch64 setup-venv setup-vllm stand-in ptx \
	ptx-test emulator llama-hosts asan-short asan-long tsan miri coverage fuzz mutation header bench gpu-pack \
	gpu-peers gpu-peer-kernels clean clean-cache
.DEFAULT_GOAL := help

help:
	@echo "Tests, in tiers; each lists at its end what ran and what was skipped:"
	@echo "  make check      format, lint, documents, quick Rust tests; minutes, installs nothing"
	@echo "  make test       Rust, C, C++, Python, CUDA kernels on a stand-in; 15 minutes, installs a few Debian packages"
	@echo "  make test-all   what test leaves out: llama.cpp, sanitizers, mutants, AArch64, PTX, nvcc, PyTorch; about 6 GB"
	@echo "  make nightly    a million histories, long soaks, a fresh machine; hours"
	@echo "Parts, each a target of its own:"
	@for tier in "check: $(CHECK)" "test: $(TEST)" "test-all: $(ALL)" "nightly: $(NIGHTLY)"; do \
		echo "$$tier" | fold -s -w 110 | sed 's/^/  /; 2,$$s/^/    /'; done
	@echo "Other targets:"
	@echo "  make setup-engines  install what inflight-serve and llama-stream need, on Debian"
	@echo "  make header     write include/sinkcache.h after a change of src/ffi"
	@echo "  make bench      the benchmarks of criterion"
	@echo "  make fuzz       fuzz targets for SECONDS (600) in all"
	@echo "  make mutation   100 of cargo-mutants' mutants, those of the committed seed (SEED=, COUNT=)"
	@echo "  make tsan, make miri   ThreadSanitizer and Miri over a share of what they do at night"
	@echo "  make coverage   lines and branches of src/ that tests run; build/coverage lists the others"
	@echo "  make gpu-pack   build/gpu_check: all that a machine with a GPU needs to check and measure the CUDA backend"
	@echo "  make gpu-peers  FlashInfer for such a machine, gpu-peer-kernels: its kernels too; gpu-pack then packs them"
	@echo "  make clean      remove what was built here; make clean-cache: what is kept in $(CACHE)"

# RECORD=yes writes the tier's list into docs/testing.md.
RECORD_LIST = $(if $(RECORD),--record docs/testing.md)

check:
	@scripts/tier --keep-going $(RECORD_LIST) check $(CHECK)

test:
	@scripts/tier $(RECORD_LIST) test $(TEST)

# Expects that `make test` has passed: what it has tested is not tested again.
# UNTIL=TIME, in seconds since 1970: parts that have not begun by then are skipped, others every day.
test-all:
	@scripts/tier --keep-going $(RECORD_LIST) $(if $(UNTIL),--until $(UNTIL)) test-all $(ALL)

nightly:
	@scripts/tier --keep-going --record docs/testing.md nightly $(NIGHTLY)

# --- check: installs nothing ---

# The commit before the first whose subject has the form "area: what".
SUBJECTS_SINCE = b4791f2
# $(call python,FILE): runs a check, or says that it cannot.
python = if command -v $(PYTHON) >/dev/null; then $(PYTHON) -B $(1); else echo "SKIPPED: no $(PYTHON)"; fi

check-format:
	$(CARGO) fmt --all --check

check-text:
	@$(call python,scripts/check/text.py)

check-links:
	@$(call python,scripts/check/links.py)

check-cycles:
	@$(call python,scripts/check/cycles.py)

check-parameters:
	@$(call python,scripts/check/parameters.py)

check-commits:
	@scripts/check/commits $(SUBJECTS_SINCE)

check-scripts:
	@$(call python,-m unittest discover -s scripts/check)

# Builds nothing: marks in the sources and the table of mutants belong together. all-mutants runs them.
check-mutants:
	@$(call python,scripts/mutants.py --check)
	@$(call python,tools/ptx/mutants.py --check)

# The package's binding is what the header says. Adding a call: scripts/python_abi.py writes it.
check-python:
	@$(call python,scripts/python_abi.py --check)

# The predictions for GPUs follow from the table of registers: floors.py --write.
check-predictions:
	@$(call python,benches/gpu/floors.py)

check-lint:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

check-docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

# Unit tests, the rules at the edges, the header, and a few histories.
check-rust:
	SKC_HISTORIES=500 SKC_SNAPSHOT_HISTORIES=100 SKC_MENDED=300 \
		$(CARGO) test -p sinkcache --lib --test edges --test header --test histories --test snapshots

# --- test: what the README names ---

test-setup:
	@scripts/setup test

# The distribution of the random histories is part of the output.
test-rust:
	$(CARGO) test -p sinkcache -- --show-output

# Release: the tests run a real model.
test-stream:
	$(CARGO) test -p sinkcache-stream --release

# Cargo's own folder: what cargo has built there is not built again.
RELEASE = -G Ninja -DCMAKE_BUILD_TYPE=Release -DSINKCACHE_BUILD_TESTS=ON \
	-DSINKCACHE_CARGO_TARGET_DIR=$(CURDIR)/target
cmake_build = cmake -S . -B build $(RELEASE) $(1) && cmake --build build -j $(JOBS)
WITHOUT_ENGINES = -DSINKCACHE_BUILD_LLAMA=OFF -DSINKCACHE_BUILD_INFLIGHT=OFF
WITH_ENGINES = -DSINKCACHE_BUILD_LLAMA=ON -DSINKCACHE_BUILD_INFLIGHT=ON
CTEST = ctest --no-tests=error --output-on-failure -j $(JOBS)

test-cpp: test-setup
	$(call cmake_build,$(WITHOUT_ENGINES))
	$(CTEST) --test-dir build -E '^example_(python|torch)$$'

test-python: test-setup
	$(call cmake_build,$(WITHOUT_ENGINES))
	$(CTEST) --test-dir build -R '^example_(python|torch)$$' -V
	@scripts/setup test venv
	CARGO="$(CARGO)" PYTHON="$(PYTHON)" scripts/python_wheel native

# A CUDA driver and compiler that run the kernels on the CPU.
stand-in:
	tools/cuda_shim/build.sh build/shim
	build/shim/self_test --gtest_brief=1

# Kernels it has compiled are kept; the library's own cache of kernels is off.
KERNELS = SINKCACHE_CUDA_CACHE_DIR= SKC_SHIM_CACHE=$(CURDIR)/build/shim-kernels
ON_STAND_IN = LD_LIBRARY_PATH=$(CURDIR)/build/shim:$$LD_LIBRARY_PATH $(KERNELS)
# A share of what all-cuda-sanitize runs, and without sanitizers.
CUDA_SHARE = SKC_HISTORIES=30 SKC_SNAPSHOT_HISTORIES=10 SKC_MENDED=10 \
	SKC_STREAMS=11 SKC_REPLAYS=12 SKC_SOAK=120 SKC_SHARE=36

# The CUDA backend without a GPU: slot arithmetic, the tests of the backend, and a C++ host with device pointers.
test-cuda: test-setup stand-in gpu-pack
	SKC_SHIM_LIBS=$(CURDIR)/build/shim $(CARGO) test -p sinkcache --test ring_on_device
	$(ON_STAND_IN) $(CARGO) test -p sinkcache --test lookups
	$(CUDA_SHARE) $(ON_STAND_IN) scripts/gpu_check build/gpu_check --jobs $(JOBS) --shim build/shim
	$(call cmake_build,$(WITHOUT_ENGINES))
	$(ON_STAND_IN) $(CTEST) --test-dir build -R '^cuda_'

# --- test-all: every part installs what it needs and keeps it ---

setup-engines:
	@scripts/setup test engines

setup-aarch64:
	@scripts/setup test aarch64

setup-venv:
	@scripts/setup test venv

setup-vllm:
	@scripts/setup test vllm

# llama.cpp is built once for a machine and kept in ~/.cache/sinkcache (SINKCACHE_LLAMA_DIR).
all-llama: setup-engines stand-in
	$(call cmake_build,$(WITH_ENGINES))
	$(CTEST) --test-dir build -R '^(llama|common)_' -E '^llama_accelerators'
	$(ON_STAND_IN) $(CTEST) --test-dir build -R '^llama_accelerators'

# llama-server, llama-cli, llama-completion and llama-cpp-python with the library in front of them. Their build takes
# 20 minutes and more: where nightly-llama-hosts has not made it, nothing is done.
all-llama-hosts:
	@if why=$$(scripts/llama_hosts --cached 2>&1 >/dev/null); then $(MAKE) --no-print-directory llama-hosts; \
		else echo "SKIPPED: $$why"; fi

llama-hosts: setup-engines setup-venv
	$(call cmake_build,$(WITH_ENGINES))
	programs=$$(scripts/llama_hosts) && python=$$(PYTHON=$(PYTHON) scripts/llama_cpp_python "$$programs") && \
		$(PYTHON) -B integrations/llama_cpp/tests/hosts/run.py --programs "$$programs" --python "$$python" \
		--library build/integrations/llama_cpp/interpose/libsinkcache_llama.so $(HOST_TESTS)

all-inflight: setup-engines stand-in
	@scripts/setup prometheus
	$(call cmake_build,$(WITH_ENGINES))
	$(CTEST) --test-dir build -R '^inflight_' -E '^inflight_cuda$$'
	$(ON_STAND_IN) $(CTEST) --test-dir build -R '^inflight_cuda$$'

# Damaged models into stream, inflight-serve and llama-stream, hostile requests into inflight-serve.
DAMAGED_FILES = 200
DAMAGED_SEED = 1
all-damaged-files: setup-engines
	$(call cmake_build,$(WITH_ENGINES))
	$(CARGO) build --release -p sinkcache-stream --example stream
	$(PYTHON) -B scripts/damaged/run.py --files $(DAMAGED_FILES) --lines $(DAMAGED_FILES) --seed $(DAMAGED_SEED) \
		--stream target/release/examples/stream --inflight build/examples/inflight/inflight-serve \
		--llama build/integrations/llama_cpp/llama-stream

# Nightly Rust's switch for AddressSanitizer, which the variable opens in every toolchain.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
ASAN_RUST = RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address"

# The Rust library is instrumented too, and checks its arithmetic for overflow.
all-sanitize-cpp: setup-engines
	cmake -S . -B build-sanitize -G Ninja -DCMAKE_BUILD_TYPE=Debug -DSINKCACHE_SANITIZE=address,undefined $(WITH_ENGINES) \
		-DSINKCACHE_CARGO_TARGET_DIR=$(CURDIR)/target/asan -DSINKCACHE_CARGO_TARGET=$(HOST) \
		"-DSINKCACHE_CARGO_ENV=RUSTC_BOOTSTRAP=1;RUSTFLAGS=-Zsanitizer=address"
	cmake --build build-sanitize -j $(JOBS)
	$(CTEST) --test-dir build-sanitize

# Slow: fewer histories than test-rust has, shorter windows (still of three splits), a share of the replays of vectors.
# Half of the programs run beside the others.
ASAN_TEST = $(ASAN_RUST) SKC_HISTORIES=$(ASAN_HISTORIES) SKC_SNAPSHOT_HISTORIES=1000 SKC_MENDED=10000 \
	SKC_WINDOW=1030 SKC_SHARE=$(ASAN_SHARE) CARGO_TARGET_DIR=target/asan $(CARGO) test -p sinkcache --target $(HOST)
ASAN_HISTORIES = 1500
ASAN_SHARE = 9
ASAN_SHORT = --lib --test instruction_sets --test edges --test teams --test allocations --test snapshots
ASAN_LONG = --test vectors --test histories

all-sanitize-rust:
	$(ASAN_TEST) --no-run $(ASAN_SHORT) $(ASAN_LONG)
	$(MAKE) --no-print-directory -j2 --output-sync=target asan-short asan-long ASAN_HISTORIES=$(ASAN_HISTORIES) \
		ASAN_SHARE=$(ASAN_SHARE)

asan-short:
	$(ASAN_TEST) $(ASAN_SHORT)

asan-long:
	$(ASAN_TEST) $(ASAN_LONG)

# Named mistakes in a copy of the sources, each of which the tests must catch: every eighth, others every day. All of
# them would take longer than any other part.
all-mutants: setup-aarch64 stand-in emulator
	$(PYTHON) scripts/mutants.py --share 12 --day $(shell date +%j)

# Of instructions, for processors that do not have them; only x86-64 can run it.
emulator:
	@if [ "$$(uname -m)" = x86_64 ]; then tools/isa_emulator/build.sh build/isa_emulator; fi

# AArch64 and NEON, under QEMU.
all-aarch64: setup-aarch64
	CARGO="$(CARGO)" scripts/neon_test

# AMX and AVX-512 FP16, where the processor has them not, in an emulator.
all-emulated-isa: test-setup
	CARGO="$(CARGO)" scripts/emulated_isa

# As test-cuda, but more of everything, and kernels and driver under ASan and UBSan. What takes the longest is a share:
# nightly-soak and nightly-ptx do more of it.
SANITIZE_SHARE = SKC_HISTORIES=60 SKC_SNAPSHOT_HISTORIES=20 SKC_MENDED=20 SKC_STREAMS=22 SKC_REPLAYS=100 SKC_SOAK=1000 \
	SKC_SHARE=36
ASAN = $(shell $(CXX) -print-file-name=libasan.so)
UBSAN = $(shell $(CXX) -print-file-name=libubsan.so)
all-cuda-sanitize: test-setup gpu-pack
	tools/cuda_shim/build.sh build/shim-sanitize sanitize
	$(SANITIZE_SHARE) $(KERNELS) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		scripts/gpu_check build/gpu_check --jobs $(JOBS) --shim build/shim-sanitize --preload "$(ASAN):$(UBSAN)" \
		--json build/gpu_check/shim.json

# What NVIDIA's compiler makes of the kernels, executed as PTX: two architectures, with a race detector, and mistakes
# that only this finds. Others every day.
ptx:
	PYTHON="$(PYTHON)" tools/ptx/build.sh build/ptx
	build/ptx/self_test --gtest_brief=1
	SKC_PTX_SCHEDULE=2 SKC_PTX_MMA=1 SKC_PTX_APPROX=1 build/ptx/self_test --gtest_brief=1

PTX_KERNELS = SINKCACHE_CUDA_CACHE_DIR= SKC_SHIM_CACHE=$(CURDIR)/build/ptx-kernels SKC_SHIM_MULTIPROCESSORS=8
ptx-test: test-setup setup-venv ptx gpu-pack
	$(PTX_KERNELS) $(PYTHON) -B tools/ptx/run.py build/gpu_check build/ptx --jobs $(JOBS) --day $(shell date +%j)
	$(PTX_KERNELS) $(PYTHON) -B tools/ptx/mutants.py build/gpu_check build/ptx --jobs $(JOBS)

all-ptx: ptx-test

# Kernels that are built in: by NVIDIA's compiler for two architectures, and on the stand-in where there is no compiler.
all-cuda-cubins: test-setup stand-in
	SINKCACHE_NVRTC_DIR=$(CURDIR)/build/shim SINKCACHE_CUBIN_ARCHS=80,90 SINKCACHE_CUBIN_SHAPES=128x1:bf16,64x2:bf16 \
		SKC_SHIM_CACHE=$(CURDIR)/build/shim-kernels \
		$(CARGO) clippy -p sinkcache --features cubins --all-targets -- -D warnings
	SKC_SHIM_CACHE=$(CURDIR)/build/shim-kernels scripts/cuda_cubins.py build/shim

# Every architecture, without a GPU: no spills, and the committed table of registers is current. Every second variant,
# the others the next day.
all-cuda-variants: setup-venv
	scripts/cuda_variants.py --share 2 --day $(shell date +%j)

# The CUDA half of examples/inflight by nvcc from PyPI, for every architecture: it compiles and links.
all-cuda-nvcc: setup-engines setup-venv
	scripts/cuda_engine build-cuda

# PyTorch for the tests of benches/gpu: 2 GB to download, 4 GB unpacked.
TORCH = $(CACHE)/torch-$(shell cksum <benches/gpu/requirements.txt | cut -d' ' -f1)
$(TORCH)/complete:
	$(PYTHON) -m venv --clear $(TORCH)
	$(TORCH)/bin/pip install --quiet --no-deps --no-compile -r benches/gpu/requirements.txt
	touch $@

# The benchmarks for a GPU, without one: all contenders on the CPU from the packed folder, the library's half on the
# stand-in (NVIDIA's compiler, which PyTorch brings along, does not work with it), and the table of predictions.
GPU_BENCH = SINKCACHE_LIBRARY=$(CURDIR)/build/gpu_check/libsinkcache.so PYTHONDONTWRITEBYTECODE=1
TORCH_PYTHON = $(TORCH)/bin/python
all-gpu-bench: setup-venv stand-in gpu-peers gpu-pack
	$(MAKE) --no-print-directory $(TORCH)/complete
	$(PYTHON) benches/gpu/floors.py
	$(GPU_BENCH) $(TORCH_PYTHON) -W ignore benches/gpu/self_test.py
	$(call install_peers,build/gpu-peers)
	$(GPU_BENCH) SKC_PEERS=$(CURDIR)/build/gpu-peers $(TORCH_PYTHON) -W ignore benches/gpu/self_test_peers.py
	rm -rf build/gpu-bench
	$(GPU_BENCH) PYTHON=$(TORCH_PYTHON) GO_DEVICE=cpu GO_OPTIONS="--smoke --strict --seconds 0.02 --limit 0" \
		GO_LLAMA_OPTIONS="--tiny --seconds 0.05" build/gpu_check/benches/gpu/go build/gpu-bench/cpu 600
	$(GPU_BENCH) $(ON_STAND_IN) SINKCACHE_NVRTC_DIR=$(CURDIR)/build/shim \
		$(TORCH_PYTHON) -W ignore benches/gpu/run.py --device shim --smoke --strict --seconds 0.01 --limit 0 \
		--out build/gpu-bench/shim

# transformers beside PyTorch: the newest version tested, and the oldest that sinkcache.transformers takes.
TRANSFORMERS = $(CACHE)/transformers-
$(TRANSFORMERS)%/complete: $(TORCH)/complete
	rm -rf $(@D)
	$(TORCH_PYTHON) -m pip install --quiet --no-compile --target $(@D) transformers==$*
	touch $@
TRANSFORMERS_NEWEST = 5.24.0
TRANSFORMERS_VERSIONS = $(TRANSFORMERS_NEWEST) 5.16.1

# The Python package with PyTorch and transformers.
all-python: setup-venv
	$(MAKE) --no-print-directory $(TORCH)/complete $(TRANSFORMERS_VERSIONS:%=$(TRANSFORMERS)%/complete)
	CARGO="$(CARGO)" scripts/python_wheel torch $(TORCH_PYTHON) $(TRANSFORMERS_VERSIONS:%=$(TRANSFORMERS)%)

# What examples/notebook needs more. accelerate by itself: it would bring another PyTorch.
NOTEBOOK = $(CACHE)/notebook-$(shell cksum <examples/notebook/requirements.txt | cut -d' ' -f1)
$(NOTEBOOK)/complete: $(TORCH)/complete
	rm -rf $(NOTEBOOK)
	$(TORCH_PYTHON) -m pip install --quiet --no-compile --target $(NOTEBOOK) -r examples/notebook/requirements.txt
	$(TORCH_PYTHON) -m pip install --quiet --no-compile --target $(NOTEBOOK) --no-deps accelerate==1.15.0
	touch $@

# The notebook prints and draws what is committed in it. After a change: scripts/notebook.py --write.
all-notebook: setup-venv
	$(MAKE) --no-print-directory $(NOTEBOOK)/complete $(TRANSFORMERS)$(TRANSFORMERS_NEWEST)/complete
	CARGO="$(CARGO)" scripts/python_wheel notebook $(TORCH_PYTHON) $(TRANSFORMERS)$(TRANSFORMERS_NEWEST) $(NOTEBOOK)

# The crate from Rust, and the C ABI from Go, Node.js, Java and C#: each example checks itself. What a machine does not
# have is skipped.
all-languages:
	$(CARGO) build --release -p sinkcache -p sinkcache-example
	target/release/sinkcache-example
	scripts/languages target/release

# What a registry would be given: it builds by itself, and is below crates.io's limit.
MOST_PACKAGE_BYTES = 10000000
all-package:
	@for manifest in examples/candle fuzz; do \
		$(CARGO) metadata --locked --format-version 1 --manifest-path $$manifest/Cargo.toml >/dev/null || exit 1; done
	$(CARGO) package -p sinkcache --locked --allow-dirty
	@bytes=$$(stat -c %s target/package/sinkcache-*.crate); echo "the package has $$bytes bytes"; \
		[ "$$bytes" -le $(MOST_PACKAGE_BYTES) ] || { echo "at most $(MOST_PACKAGE_BYTES) are allowed"; exit 1; }

# The header's structs, functions and numbers are those of cpp_tests/abi.xml. After an addition: scripts/abi.py --write.
all-abi:
	@scripts/setup abi
	$(PYTHON) -B scripts/abi.py

# $(call fuzz,SECONDS): all targets, in so many seconds.
define fuzz
scripts/setup engines clang venv
scripts/fuzz $$(($(1) * 6 / 10))
scripts/fuzz_readers $$(($(1) * 2 / 10))
PYTHON="$(PYTHON)" scripts/fuzz_python $$(($(1) / 10))
scripts/fuzz_llama $$(($(1) / 10))
endef

# Of what nightly-fuzz does for an hour.
all-fuzz:
	$(call fuzz,100)

# What threads share: run under ThreadSanitizer, and as models in every order of threads.
# Minutes each; nightly-tsan and nightly-miri do more.
tsan:
	@scripts/tsan 20000 60

all-loom:
	@scripts/loom 2

# Undefined behaviour, on scalar kernels and small shapes.
miri:
	@scripts/miri short

# Lines and branches of src/ that the tests run: fails below 95 % of the lines.
coverage: test-setup
	@$(PYTHON) -B scripts/coverage.py

# Programs of the C++ tests in memcheck, on two instruction sets. Those that only take longer are left to the night.
VALGRIND_SHORT = batches layouts call_errors config_errors structs handles pointers memory busy step_part edits ranges \
	snapshots nonfinite log raii allocation_failures
VALGRIND_TESTS = $(VALGRIND_SHORT)
all-valgrind: test-setup
	$(call cmake_build,$(WITHOUT_ENGINES))
	@scripts/setup valgrind || { echo "SKIPPED: Valgrind cannot be installed"; exit 0; }; \
		scripts/valgrind build avx2 $(VALGRIND_TESTS) && scripts/valgrind build scalar $(VALGRIND_TESTS)

# Three million tokens; nightly-life has 100 million.
all-soak:
	$(CARGO) test -p sinkcache --test soak -- --nocapture

# Licences and sources of all packages, and the library with the oldest versions of them that it allows.
all-dependencies:
	@$(PYTHON) -B scripts/dependencies.py
	@scripts/minimal_versions

# --- nightly ---

# Others every night: the command line shows the seed.
nightly-histories:
	SKC_HISTORIES=1000000 SKC_SNAPSHOT_HISTORIES=10000 SKC_SEED=$(shell date +%j) \
		$(CARGO) test -p sinkcache --test histories -- --show-output

# About an hour: snapshots with wrong contents and right checksums.
nightly-snapshots:
	SKC_MENDED=1500000 SKC_SEED=$(shell date +%j) $(CARGO) test -p sinkcache --test snapshots -- --show-output

# The tests of the CUDA backend on the stand-in, with as much as on a GPU where the stand-in can do it within hours.
nightly-soak: test-setup stand-in gpu-pack
	SKC_HISTORIES=2000 SKC_SNAPSHOT_HISTORIES=300 SKC_STREAMS=220 SKC_REPLAYS=1000 SKC_SOAK=100000 SKC_SHARE=4 \
		$(ON_STAND_IN) scripts/gpu_check build/gpu_check --jobs $(JOBS) --shim build/shim --limit 14400

# Others every night: the command line shows the seed.
nightly-damaged-files:
	$(MAKE) --no-print-directory all-damaged-files DAMAGED_FILES=2000 DAMAGED_SEED=$(shell date +%j)

# The Python package as a wheel for any Linux, in every Python of this machine; a longer text through transformers.
nightly-python: setup-venv setup-aarch64
	CARGO="$(CARGO)" PYTHON="$(PYTHON)" scripts/python_wheel manylinux
	$(MAKE) --no-print-directory $(TORCH)/complete $(TRANSFORMERS)$(TRANSFORMERS_NEWEST)/complete
	SKC_TOKENS=20000 CARGO="$(CARGO)" scripts/python_wheel torch $(TORCH_PYTHON) $(TRANSFORMERS)$(TRANSFORMERS_NEWEST)

# vLLM for the CPU, with the PyTorch that it asks for: 2.6 GB to download, 4.8 GB unpacked. Compiled, since each test
# is a process that imports it.
VLLM = $(CACHE)/vllm-$(shell cksum <python/tests/requirements-vllm.txt | cut -d' ' -f1)
$(VLLM)/complete:
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install --quiet --no-deps -r python/tests/requirements-vllm.txt
	touch $@

# The Python package as a plugin of vLLM.
nightly-vllm: setup-vllm
	$(MAKE) --no-print-directory $(VLLM)/complete
	CARGO="$(CARGO)" scripts/python_wheel vllm $(VLLM)/bin/python

# A Llama in candle over the crate, beside candle's own. Minutes: candle is large, and no other part needs it.
CANDLE = --manifest-path examples/candle/Cargo.toml
nightly-candle:
	$(CARGO) fmt $(CANDLE) --check
	CARGO_TARGET_DIR=$(CURDIR)/target $(CARGO) clippy $(CANDLE) --release --locked -- -D warnings
	CARGO_TARGET_DIR=$(CURDIR)/target $(CARGO) run $(CANDLE) --release --locked

# A thousand parked conversations, where all-inflight has 120.
nightly-parking: setup-engines
	$(call cmake_build,$(WITH_ENGINES))
	SKC_CONVERSATIONS=1000 $(CTEST) --test-dir build -R '^inflight_park_serve$$'

nightly-sanitize-rust:
	$(MAKE) --no-print-directory all-sanitize-rust ASAN_HISTORIES=20000 ASAN_SHARE=4

nightly-cuda-variants: setup-venv
	scripts/cuda_variants.py

# Hours: all tests of the backend as PTX, three times, and all mutants of the kernels.
nightly-ptx: test-setup setup-venv ptx gpu-pack
	$(PTX_KERNELS) $(PYTHON) -B tools/ptx/run.py build/gpu_check build/ptx --jobs $(JOBS) --all --day $(shell date +%j)
	$(PTX_KERNELS) $(PYTHON) -B tools/ptx/mutants.py build/gpu_check build/ptx --jobs $(JOBS)
	$(PTX_KERNELS) $(PYTHON) -B tools/ptx/mutants.py build/gpu_check build/ptx --jobs $(JOBS) --stand-in

nightly-mutants: setup-aarch64 stand-in emulator
	$(PYTHON) scripts/mutants.py

# Others every day.
nightly-mutation:
	$(MAKE) --no-print-directory mutation SEED=$(shell date +%Y%j) COUNT=500 MUTATION_SECONDS=7200

nightly-aarch64: setup-aarch64
	CARGO="$(CARGO)" SKC_HISTORIES=2000 SKC_SHARE=4 scripts/neon_test

# llama.cpp anew from its source, and the adapter with it.
nightly-third-party: setup-engines
	rm -rf build-third-party
	SINKCACHE_LLAMA_DIR=$(CURDIR)/build-third-party/llama.cpp \
		cmake -S . -B build-third-party/build $(RELEASE) $(WITH_ENGINES)
	cmake --build build-third-party/build -j $(JOBS)
	$(CTEST) --test-dir build-third-party/build -R '^(llama|common|inflight)_'

# llama.cpp's own programs are built, if they are not there; streams of 100,000 tokens; the server's web page in a
# browser, where there are Chromium and Node.js.
nightly-llama-hosts: setup-engines setup-venv
	scripts/llama_hosts
	-@scripts/setup test browser
	page=$$(scripts/llama_web_page) && page="--page $$page"; \
		$(MAKE) --no-print-directory llama-hosts HOST_TESTS="--everything $$page"

nightly-fuzz:
	$(call fuzz,3600)

nightly-tsan:
	scripts/tsan 1000000 2000

nightly-loom:
	scripts/loom 3
	$(PYTHON) -B scripts/loom_faults.py

nightly-miri:
	scripts/miri long

nightly-coverage:
	$(MAKE) --no-print-directory coverage

# All but `fork`, whose children end at once with what the parent had, and `small_stack`, which counts bytes.
nightly-valgrind:
	$(MAKE) --no-print-directory all-valgrind \
		VALGRIND_TESTS="$(VALGRIND_SHORT) parallel_for threads discovery vectors"

# LIFE_PIECES pieces of LIFE_TOKENS tokens, each going on where the one before has ended, in another process. What is
# there already goes on: `make nightly-life LIFE_PIECES=1` is one more piece.
LIFE_TOKENS = 10000000
LIFE_PIECES = 10
LIFE_STATE = $(CURDIR)/build/soak-state
nightly-life:
	@if [ "$(LIFE_PIECES)" != 1 ]; then rm -f "$(LIFE_STATE)"; fi
	@mkdir -p build
	@for piece in $$(seq $(LIFE_PIECES)); do \
		SKC_SOAK_TOKENS=$(LIFE_TOKENS) SKC_SOAK_STATE="$(LIFE_STATE)" \
			$(CARGO) test -p sinkcache --test soak -- --nocapture || exit 1; done

# The first hour with a GPU on the stand-in: in a root with Python alone, with contenders that fail and a full disk.
nightly-gpu-rehearsal: setup-venv stand-in gpu-peers gpu-pack
	$(MAKE) --no-print-directory $(TORCH)/complete
	benches/gpu/rehearsal/run build/gpu_check build/shim $(TORCH_PYTHON) $(CURDIR)/build/gpu-rehearsal 540

# The README's two commands in a new Debian that has Rust, git, make and a C linker.
nightly-fresh-machine:
	scripts/fresh_machine

# --- other targets ---

header:
	SKC_WRITE_HEADER=1 $(CARGO) test -p sinkcache --test header

bench:
	$(CARGO) bench -p sinkcache

# An input that fails is kept in fuzz/artifacts.
SECONDS = 600
fuzz:
	$(call fuzz,$(SECONDS))

# Mutants of cargo-mutants in what is not a kernel. What is there for the same sources is not run again.
MUTATION = $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT)) \
	$(if $(MUTATION_SECONDS),--limit-seconds $(MUTATION_SECONDS))
mutation: test-setup stand-in
	$(call cmake_build,$(WITHOUT_ENGINES))
	$(PYTHON) -B scripts/mutation.py $(MUTATION)

# What a machine with a GPU needs, in a folder that stands by itself: `build/gpu_check/benches/gpu/go OUT` there.
gpu-pack:
	scripts/gpu_check --pack build/gpu_check --wheels $(PEERS)

# FlashInfer's wheel and those that it needs, for every Python that it runs on: 18 MB, once for a machine.
PEERS = $(CACHE)/gpu-peers-$(shell cksum <benches/gpu/requirements-peers.txt | cut -d' ' -f1)
gpu-peers: setup-venv
	benches/gpu/fetch_peers $(PYTHON) $(PEERS)

# $(call install_peers,FOLDER)
install_peers = rm -rf $(1) && $(TORCH_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile \
	--find-links $(PEERS) --target $(1) -r benches/gpu/requirements-peers.txt

# FlashInfer's kernels too, by NVIDIA's compiler from PyPI, so that the machine with the GPU needs none. They are linked
# with the stand-in in the place of the driver.
PEER_ARCH = 9.0a
gpu-peer-kernels: stand-in gpu-peers
	$(MAKE) --no-print-directory $(TORCH)/complete
	$(call install_peers,build/gpu-peers)
	cuda=$$(scripts/cuda_kit) && PATH="$$PATH:$(CURDIR)/build/gpu-peers/bin" SKC_PEERS=$(CURDIR)/build/gpu-peers \
		CUDA_HOME=$$cuda FLASHINFER_CUDA_ARCH_LIST=$(PEER_ARCH) FLASHINFER_EXTRA_LDFLAGS=-L$(CURDIR)/build/shim \
		FLASHINFER_WORKSPACE_BASE=$(CURDIR)/build/gpu-peer-kernels MAX_JOBS=$(JOBS) \
		$(TORCH_PYTHON) -W ignore benches/gpu/peer_kernels.py --into $(PEERS)/kernels

clean:
	$(CARGO) clean
	rm -rf build build-sanitize build-coverage build-cuda build-third-party

clean-cache:
	rm -rf $(CACHE)
