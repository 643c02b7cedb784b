#!/bin/sh
# Builds the shim: tools/cuda_shim/build.sh OUTDIR [sanitize]
#
# OUTDIR gets libcuda.so.1, libnvrtc.so.13 (each also by its plain name), libring_functions.so, self_test, and
# libshim_runtime.a for harnesses.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTDIR [sanitize]}
mode=${2:-plain}
: "${CXX:=g++}" "${JOBS:=2}"
mkdir -p "$out/objects"
out=$(cd "$out" && pwd)

flags="-std=c++17 -O2 -g -fPIC -fvisibility=hidden -Wall -Wextra -Werror -I$here"
# With sanitizers only what touches device memory is instrumented: the rest would be five times slower for nothing.
case $mode in
    plain) sanitize="" told="" kernels="" ;;
    sanitize)
        sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
        told="-DSKC_SHIM_ASAN" kernels=$sanitize ;;
    *) echo "build.sh: unknown mode '$mode'" >&2; exit 1 ;;
esac

runtime="grid fiber meetings copies"
driver="driver capture memory queue api_context api_memory api_stream api_module image"
compiler="nvrtc compiler"
tests="self_test_lanes self_test_barriers self_test_driver self_test_launches"

# $1 is newer than its sources, or this builds it.
compile() {
    name=$1; shift
    newest=$(ls -t "$here"/*.hpp "$here/$name.cpp" "$here/build.sh" | head -1)
    [ "$out/objects/$name.o" -nt "$newest" ] && return
    # shellcheck disable=SC2086
    $CXX $flags "$@" -c "$here/$name.cpp" -o "$out/objects/$name.o"
}

objects() {
    for name in $1; do printf '%s ' "$out/objects/$name.o"; done
}

# $1: library, $2: soname, $3: objects. Replaced in one step: another build, or a test, may be using it.
library() {
    # shellcheck disable=SC2046,SC2086
    $CXX -shared -Wl,-soname,"$2" -Wl,--no-undefined $sanitize $(objects "$3") -o "$out/$2.$$" -ldl -pthread
    mv -f "$out/$2.$$" "$out/$2"
    ln -sf "$2" "$out/$1"
}

# shellcheck disable=SC2086
{
    compile grid $told
    compile fiber $told
    compile meetings
    for name in copies $driver; do compile "$name" $sanitize; done
    for name in $compiler; do
        compile "$name" "-DSKC_SHIM_DIR=\"$here\"" "-DSKC_SHIM_CXX=\"$CXX\"" "-DSKC_SHIM_KERNEL_FLAGS=\"$kernels\""
    done
}
library libcuda.so libcuda.so.1 "$runtime $driver"
library libnvrtc.so libnvrtc.so.13 "$compiler image"
# shellcheck disable=SC2086
for name in $tests; do compile "$name" $sanitize; done
# shellcheck disable=SC2046,SC2086
$CXX $sanitize $(objects "$tests") -o "$out/self_test.$$" -L"$out" -l:libcuda.so.1 -l:libnvrtc.so.13 -Wl,-rpath,"$out" -lgtest -lgtest_main -pthread
mv -f "$out/self_test.$$" "$out/self_test"
rm -f "$out/libshim_runtime.a"
# shellcheck disable=SC2046
ar rcs "$out/libshim_runtime.a" $(objects "$runtime")

# The slot arithmetic by itself, for the test that holds it against src/ring.rs.
# shellcheck disable=SC2086
$CXX $flags -DSKC_HOST_SHIM -I"$here/../../src/backend/cuda/kernels" -shared "$here/ring_functions.cpp" -o "$out/libring_functions.so.$$"
mv -f "$out/libring_functions.so.$$" "$out/libring_functions.so"
