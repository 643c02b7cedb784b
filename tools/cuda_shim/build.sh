#!/bin/sh
# Builds the shim: tools/cuda_shim/build.sh OUTDIR [sanitize]
#
# Writes to OUTDIR: libcuda.so.1 and libnvrtc.so.13 (with links libcuda.so and libnvrtc.so), libring_functions.so,
# self_test, and libshim_runtime.a for harnesses.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTDIR [sanitize]}
mode=${2:-plain}
: "${CXX:=g++}" "${JOBS:=2}"
mkdir -p "$out/objects"
out=$(cd "$out" && pwd)

kernel_sources="$here/../../src/backend/cuda/kernels"
flags="-std=c++17 -O2 -g -fPIC -fvisibility=hidden -Wall -Wextra -Werror -I$here"
# With sanitizers only what accesses device memory is instrumented: the rest would run five times slower.
case $mode in
    plain) sanitize="" asan="" kernels="" ;;
    sanitize)
        sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
        asan="-DSKC_SHIM_ASAN" kernels=$sanitize ;;
    *) echo "build.sh: unknown mode '$mode'" >&2; exit 1 ;;
esac

runtime="grid scheduler runtime fiber warp_ops async_copy"
driver="driver stream capture memory queue image host_code api_context api_memory api_stream api_event api_capture
    api_graph api_module api_launch api_test"
compiler="nvrtc compiler files"
tests="self_test_warp_ops self_test_convert self_test_device_bugs self_test_programmatic_launch self_test_streams
    self_test_graphs self_test_contexts self_test_compiler self_test_error_record self_test_clusters"

# Compiles $1.cpp unless its object is newer than the sources. The other arguments are flags.
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

# $1: library, $2: soname, $3: objects. The file is replaced by a rename: another build, or a test, may be using it.
library() {
    # shellcheck disable=SC2046,SC2086
    $CXX -shared -Wl,-soname,"$2" -Wl,--no-undefined $sanitize $(objects "$3") -o "$out/$2.$$" -ldl -pthread
    mv -f "$out/$2.$$" "$out/$2"
    ln -sf "$2" "$out/$1"
}

# shellcheck disable=SC2086
{
    for name in grid scheduler runtime fiber; do compile "$name" $asan; done
    compile warp_ops
    for name in async_copy $driver; do compile "$name" $sanitize; done
    for name in $compiler; do
        compile "$name" "-DSKC_SHIM_DIR=\"$here\"" "-DSKC_SHIM_CXX=\"$CXX\"" "-DSKC_SHIM_KERNEL_FLAGS=\"$kernels\""
    done
}
library libcuda.so libcuda.so.1 "$runtime $driver"
library libnvrtc.so libnvrtc.so.13 "$compiler image"
# shellcheck disable=SC2086
for name in $tests; do compile "$name" $sanitize "-DSKC_SHIM_KERNELS=\"$kernel_sources\""; done
# shellcheck disable=SC2046,SC2086
$CXX $sanitize $(objects "$tests") -o "$out/self_test.$$" -L"$out" -l:libcuda.so.1 -l:libnvrtc.so.13 \
    -Wl,-rpath,"$out" -lgtest -lgtest_main -pthread
mv -f "$out/self_test.$$" "$out/self_test"
rm -f "$out/libshim_runtime.a"
# shellcheck disable=SC2046
ar rcs "$out/libshim_runtime.a" $(objects "$runtime")

# The slot arithmetic alone, for the test that compares it with src/ring.rs.
# shellcheck disable=SC2086
$CXX $flags -Wno-unknown-pragmas -DSKC_HOST_SHIM -I"$kernel_sources" -shared "$here/ring_functions.cpp" \
    -o "$out/libring_functions.so.$$"
mv -f "$out/libring_functions.so.$$" "$out/libring_functions.so"
