#!/bin/sh
# Builds the emulator: tools/isa_emulator/build.sh OUTDIR
#
# OUTDIR gets libisa_emulator.so and, where there is GoogleTest, self_test.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTDIR}
: "${CXX:=g++}"
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "build.sh: the emulator is for Linux on x86-64" >&2
    exit 1
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)

flags="-std=c++17 -O2 -g -fPIC -fvisibility=hidden -Wall -Wextra -Werror"
# GCC's own headers leave vectors uninitialized on purpose, and older GCCs warn of that.
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -ffp-contract=off -Wno-uninitialized -Wno-maybe-uninitialized"
sources="$here/decode.cpp $here/patch.cpp $here/preload.cpp"

# execute.cpp alone may use AVX-512: the rest runs on every processor. Replaced in one step: a test may be using it.
# shellcheck disable=SC2086
{
    $CXX $flags $avx512 -c "$here/execute.cpp" -o "$out/execute.o"
    $CXX $flags -shared -Wl,-soname,libisa_emulator.so -Wl,-z,defs \
        $sources "$here/entry.S" "$out/execute.o" -o "$out/libisa_emulator.so.$$"
    mv -f "$out/libisa_emulator.so.$$" "$out/libisa_emulator.so"
}
if echo '#include <gtest/gtest.h>' | $CXX -E -x c++ - >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    $CXX $flags $avx512 "$here/self_test.cpp" "$here/self_test_system.cpp" -o "$out/self_test.$$" \
        -L"$out" -lisa_emulator -Wl,-rpath,"$out" -lgtest -lgtest_main -pthread
    mv -f "$out/self_test.$$" "$out/self_test"
else
    echo "build.sh: no GoogleTest, so no self_test"
fi
