# The Rust target of a cross build, from what CMake's toolchain file says.
include_guard(GLOBAL)

# The triple of a system and a processor, in CMake's words. `machine`: what the C compiler's -dumpmachine prints, which
# tells the C library, or "". Empty in `out` if they are not known.
function(sinkcache_rust_target out system processor machine)
    set(${out} "" PARENT_SCOPE)
    string(TOLOWER "${processor}" processor)
    if(processor MATCHES "^(x86_64|amd64|x64)$")
        set(cpu x86_64)
    elseif(processor MATCHES "^(aarch64|arm64|armv8-a|arm64-v8a)$")
        set(cpu aarch64)
    elseif(processor STREQUAL "riscv64")
        set(cpu riscv64gc)
    else()
        return()
    endif()
    # 32-bit code for a 64-bit processor.
    if(machine MATCHES "x32$|_ilp32$|^i[3-6]86-")
        return()
    endif()
    if(system STREQUAL "Linux" AND machine MATCHES "musl")
        set(${out} "${cpu}-unknown-linux-musl" PARENT_SCOPE)
    elseif(system STREQUAL "Linux" AND (machine STREQUAL "" OR machine MATCHES "gnu"))
        set(${out} "${cpu}-unknown-linux-gnu" PARENT_SCOPE)
    elseif(system STREQUAL "Android" AND NOT cpu STREQUAL "riscv64gc")
        set(${out} "${cpu}-linux-android" PARENT_SCOPE)
    elseif(system STREQUAL "FreeBSD")
        set(${out} "${cpu}-unknown-freebsd" PARENT_SCOPE)
    endif()
endfunction()

# What the C compiler needs to compile and link for the target of this build, as a list.
function(sinkcache_linker_flags out)
    set(flags "")
    if(CMAKE_C_COMPILER_TARGET)
        list(APPEND flags "--target=${CMAKE_C_COMPILER_TARGET}")
    endif()
    if(CMAKE_SYSROOT)
        list(APPEND flags "--sysroot=${CMAKE_SYSROOT}")
    endif()
    string(REGEX MATCHALL "(^| )(-fuse-ld=|--target=|--sysroot=|-march=|-mabi=)[^ ]+" more "${CMAKE_C_FLAGS}")
    list(TRANSFORM more STRIP)
    set(${out} ${flags} ${more} PARENT_SCOPE)
endfunction()

# In a cross build: sets SINKCACHE_CARGO_TARGET in the caller's scope if it is empty, or ends the configuration.
macro(sinkcache_set_cross_target)
    if(CMAKE_CROSSCOMPILING AND NOT SINKCACHE_CARGO_TARGET)
        sinkcache_linker_flags(cross_flags)
        separate_arguments(cross_launched UNIX_COMMAND "${CMAKE_C_COMPILER_ARG1}")
        execute_process(COMMAND ${CMAKE_C_COMPILER} ${cross_launched} ${cross_flags} -dumpmachine
                        OUTPUT_VARIABLE cross_machine OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
        sinkcache_rust_target(SINKCACHE_CARGO_TARGET "${CMAKE_SYSTEM_NAME}" "${CMAKE_SYSTEM_PROCESSOR}"
                              "${cross_machine}")
        if(NOT SINKCACHE_CARGO_TARGET)
            message(FATAL_ERROR "sinkcache: a cross build for CMAKE_SYSTEM_NAME=${CMAKE_SYSTEM_NAME}, "
                "CMAKE_SYSTEM_PROCESSOR=${CMAKE_SYSTEM_PROCESSOR} (compiler: '${cross_machine}'), whose Rust target is "
                "not known here: set SINKCACHE_CARGO_TARGET to one of `rustc --print target-list`")
        endif()
        message(STATUS "sinkcache: cross build, SINKCACHE_CARGO_TARGET=${SINKCACHE_CARGO_TARGET}")
    endif()
endmacro()
