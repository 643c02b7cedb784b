#!/bin/sh
# Builds the shim: tests/shim/build.sh OUTDIR [sanitize]
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTDIR [sanitize]}
mode=${2:-plain}
: "${CXX:=g++}"
mkdir -p "$out"
out=$(cd "$out" && pwd)

warnings="-Wall -Wextra -Werror"
flags="-std=c++17 -O2 -g -fPIC -fvisibility=hidden $warnings -I$here"
# With sanitizers only what touches device memory is instrumented: the rest would be five times slower for nothing.
case $mode in
    plain) watched="" told="" ;;
    sanitize) watched="-fsanitize=address" told="-DSKC_SHIM_ASAN" ;;
    *) echo "build.sh: unknown mode '$mode'" >&2; exit 1 ;;
esac

# shellcheck disable=SC2086
compile() {
    $CXX $flags $2 -c "$here/$1.cpp" -o "$out/$1.o"
}
compile grid "$told"
compile fiber "$told"
compile meetings "$told"
compile copies "$watched"
rm -f "$out/libshim_runtime.a"
ar rcs "$out/libshim_runtime.a" "$out/grid.o" "$out/fiber.o" "$out/meetings.o" "$out/copies.o"
