# Makes a static library that exports the symbols of one prefix alone. Cargo's own exports those of Rust's standard
# library too, and two such libraries cannot be linked into one program when one was built with LTO.
#     cmake -DCC=... [-DFLAGS=...] -DREADELF=... -DOBJCOPY=... -DAR=... -DPREFIX=skc_ -DINPUT=... -DOUTPUT=...
#           -P prelink.cmake
# All members that the exported functions need become one object, in which every other symbol is local. FLAGS: what
# the compiler needs to link for the target, such as --target=aarch64-linux-gnu.
cmake_minimum_required(VERSION 3.20)

function(run what)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE text ERROR_VARIABLE text)
    if(NOT result EQUAL 0)
        list(JOIN ARGN " " command)
        message(FATAL_ERROR "sinkcache: ${what} failed (${result}); -DSINKCACHE_PRELINK=OFF does without\n"
                            "${command}\n${text}")
    endif()
endfunction()

# Not by nm: one with an LLVM plugin reads the bitcode that Rust leaves in its objects, and fails if it is older.
execute_process(COMMAND "${READELF}" -sW "${INPUT}" OUTPUT_VARIABLE symbols ERROR_QUIET COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "FUNC +GLOBAL +DEFAULT +[0-9]+ ${PREFIX}[A-Za-z0-9_]+" exported "${symbols}")
list(TRANSFORM exported REPLACE ".* " "")
list(REMOVE_DUPLICATES exported)
if(NOT exported)
    message(FATAL_ERROR "sinkcache: ${INPUT} defines no function ${PREFIX}*")
endif()

separate_arguments(flags UNIX_COMMAND "${FLAGS}")
get_filename_component(folder "${OUTPUT}" DIRECTORY)
get_filename_component(name "${OUTPUT}" NAME_WE)
set(object "${folder}/${name}.prelinked.o")
list(TRANSFORM exported PREPEND "-Wl,-u," OUTPUT_VARIABLE wanted)
run("linking ${INPUT} into one object" "${CC}" ${flags} -r -nostdlib -Wl,--build-id=none ${wanted}
    "${INPUT}" -o "${object}")

list(JOIN exported "\n" lines)
file(WRITE "${object}.symbols" "${lines}\n")
# .group: a group of this object and one of the same name in another library would be merged, though the symbols of
# this one are local by then. The other two: bitcode that a linker with LTO would read instead of the code.
run("making symbols local" "${OBJCOPY}" "--keep-global-symbols=${object}.symbols" --remove-section=.group
    --remove-section=.llvmbc --remove-section=.llvmcmd "${object}")
file(REMOVE "${OUTPUT}")
run("writing ${OUTPUT}" "${AR}" rcs "${OUTPUT}" "${object}")
file(REMOVE "${object}" "${object}.symbols")
