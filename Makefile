# `make test` is the one test command: it installs what it needs, builds, and runs everything.

CARGO ?= cargo
JOBS ?= $(shell nproc)
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

.PHONY: test setup lint rust-test stream-test mutants cpp-test cpp-sanitize rust-asan header bench clean

test: setup lint rust-test stream-test mutants cpp-test cpp-sanitize rust-asan
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

# Named mistakes in a copy of the sources, each of which the tests must catch.
mutants:
	python3 scripts/mutants.py

cpp-test:
	cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build build -j $(JOBS)
	ctest --test-dir build --output-on-failure -j $(JOBS)

# The Rust library is instrumented too, and checks its arithmetic for overflow.
cpp-sanitize:
	cmake -S . -B build-sanitize -G Ninja -DCMAKE_BUILD_TYPE=Debug -DSINKCACHE_SANITIZE=address,undefined \
		-DSINKCACHE_CARGO_TARGET=$(HOST) "-DSINKCACHE_CARGO_ENV=RUSTC_BOOTSTRAP=1;RUSTFLAGS=-Zsanitizer=address"
	cmake --build build-sanitize -j $(JOBS)
	ctest --test-dir build-sanitize --output-on-failure -j $(JOBS)

# AddressSanitizer is in the toolchain, its switch is not yet stable: hence the variable. Fewer histories: it is slow.
rust-asan:
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" SKC_HISTORIES=1500 CARGO_TARGET_DIR=target/asan \
		$(CARGO) test -p sinkcache --target $(HOST) --lib --test vectors --test histories --test edges --test teams --test allocations

header:
	SKC_WRITE_HEADER=1 $(CARGO) test -p sinkcache --test header

bench:
	$(CARGO) bench -p sinkcache

clean:
	$(CARGO) clean
	rm -rf build build-sanitize
