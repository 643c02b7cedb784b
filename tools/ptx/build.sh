#!/bin/sh
# Builds the PTX interpreter: tools/ptx/build.sh OUTDIR
#
# Writes to OUTDIR: libcuda.so.1 and libnvrtc.so.13 (with links libcuda.so and libnvrtc.so), and self_test. All of the
# driver but kernels is that of tools/cuda_shim, from its sources.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
shim=$here/../cuda_shim
out=${1:?usage: build.sh OUTDIR}
: "${CXX:=g++}" "${JOBS:=2}" "${PYTHON:=python3}"
mkdir -p "$out/objects"
out=$(cd "$out" && pwd)

flags="-std=c++20 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -I$here -I$shim"
# Sums are those of the instructions: nothing is contracted. Integers wrap, as the device's do.
interpreter_flags="-O3 -march=native -fwrapv -ffp-contract=off"
compiler_flags="-DSKC_PTX_DIR='\"$here\"' -DSKC_PTX_PYTHON='\"$PYTHON\"'"

interpreter="parse statement symbols instruction arithmetic convert memory warp_ops async_copy grid race shadow
    statistics"
driver="ptx_code image"
shared_driver="driver stream capture memory queue api_context api_memory api_stream api_event api_capture api_graph
    api_module api_launch api_test"
tests="self_test self_test_arithmetic self_test_convert self_test_memory self_test_warp_ops self_test_async_copy
    self_test_races self_test_clusters"

# $1: source, $2: object. Compiles it unless the object is newer than the sources. The other arguments are flags.
compile() {
    source=$1 object=$2; shift 2
    newest=$(ls -t "$here"/*.hpp "$shim"/*.hpp "$source" "$here/build.sh" | head -1)
    [ "$object" -nt "$newest" ] && return
    echo "$*" -c "$source" -o "$object"
}

objects() {
    for name in $2; do printf '%s ' "$out/objects/$1_$name.o"; done
}

# $1: library, $2: soname, $3: objects. The file is replaced by a rename: another build, or a test, may be using it.
library() {
    # shellcheck disable=SC2086
    $CXX -shared -Wl,-soname,"$2" -Wl,--no-undefined $3 -o "$out/$2.$$" -ldl -pthread
    mv -f "$out/$2.$$" "$out/$2"
    ln -sf "$2" "$out/$1"
}

{
    for name in $interpreter; do
        compile "$here/$name.cpp" "$out/objects/ptx_$name.o" "$flags" "$interpreter_flags"
    done
    for name in $driver compiler; do
        compile "$here/$name.cpp" "$out/objects/ptx_$name.o" "$flags" -O2 "$compiler_flags"
    done
    for name in $tests; do compile "$here/$name.cpp" "$out/objects/ptx_$name.o" "$flags" -O1 -march=native; done
    for name in $shared_driver nvrtc files; do
        compile "$shim/$name.cpp" "$out/objects/shim_$name.o" "$flags" -O2
    done
} | tr '\n' '\0' | xargs -0 -P "$JOBS" -I{} sh -c "$CXX {}"
library libcuda.so libcuda.so.1 "$(objects ptx "$interpreter $driver") $(objects shim "$shared_driver")"
library libnvrtc.so libnvrtc.so.13 "$(objects ptx "compiler image") $(objects shim "nvrtc files")"
# shellcheck disable=SC2046
$CXX $(objects ptx "$tests $interpreter") -o "$out/self_test.$$" -lgtest -lgtest_main -pthread
mv -f "$out/self_test.$$" "$out/self_test"
