# Finds llama.cpp or ggml: an installed one (CMAKE_PREFIX_PATH, llama_DIR, ggml_DIR), else the pinned version that
# scripts/llama_cpp builds.
include_guard(GLOBAL)

option(SINKCACHE_LLAMA_BUNDLED "Build the pinned llama.cpp with scripts/llama_cpp if find_package finds none" ON)

# Builds the pinned llama.cpp unless it is built already, and returns its prefix. All build trees share it, also
# sanitized ones.
function(sinkcache_llama_prefix out)
    message(STATUS "sinkcache: using the llama.cpp of scripts/llama_cpp (the first build takes minutes)")
    # CMake sets CXX to the path of the compiler, which the script would take for a different compiler.
    set(env "CXX=${CMAKE_CXX_COMPILER}")
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        set(env --unset=CXX)
    endif()
    execute_process(COMMAND ${CMAKE_COMMAND} -E env ${env} "${PROJECT_SOURCE_DIR}/scripts/llama_cpp"
                    OUTPUT_VARIABLE prefix OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "sinkcache: scripts/llama_cpp failed; set CMAKE_PREFIX_PATH to an installed llama.cpp")
    endif()
    set(${out} "${prefix}" PARENT_SCOPE)
endfunction()

# find_package(<package>) for `llama` or `ggml`. A macro, so that the variables of the package are set for the caller.
macro(sinkcache_find_llama_package package)
    find_package(${package} CONFIG QUIET)
    if(NOT ${package}_FOUND AND NOT SINKCACHE_LLAMA_BUNDLED)
        message(FATAL_ERROR "sinkcache: find_package(${package}) found nothing; set CMAKE_PREFIX_PATH to an installed "
                            "llama.cpp, or SINKCACHE_LLAMA_BUNDLED to ON")
    elseif(NOT ${package}_FOUND)
        sinkcache_llama_prefix(sinkcache_llama_found)
        # The package of llama searches for ggml in CMAKE_PREFIX_PATH.
        list(PREPEND CMAKE_PREFIX_PATH "${sinkcache_llama_found}")
        find_package(${package} CONFIG REQUIRED PATHS "${sinkcache_llama_found}" NO_DEFAULT_PATH)
        # Not cached, since the pinned version may be another one at the next configuration.
        unset(llama_DIR CACHE)
        unset(ggml_DIR CACHE)
        unset(llama_LIBRARY CACHE)
    endif()
endmacro()

macro(sinkcache_find_llama)
    sinkcache_find_llama_package(llama)
endmacro()

macro(sinkcache_find_ggml)
    sinkcache_find_llama_package(ggml)
endmacro()

# Where the source of the llama.cpp lies that was found, if it is the pinned version: some of its headers and files are
# not installed. Empty for another version, or where the source cannot be had.
function(sinkcache_llama_source out)
    set(${out} "" PARENT_SCOPE)
    find_file(SINKCACHE_GGML_HEADER ggml-backend.h HINTS "${LLAMA_INCLUDE_DIR}" "${GGML_INCLUDE_DIR}")
    mark_as_advanced(SINKCACHE_GGML_HEADER)
    if(NOT SINKCACHE_LLAMA_BUNDLED OR NOT SINKCACHE_GGML_HEADER)
        return()
    endif()
    execute_process(COMMAND "${PROJECT_SOURCE_DIR}/scripts/llama_cpp" --source OUTPUT_VARIABLE source
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(failed OR NOT EXISTS "${source}/ggml/include/ggml-backend.h")
        return()
    endif()
    execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files "${SINKCACHE_GGML_HEADER}"
                            "${source}/ggml/include/ggml-backend.h" RESULT_VARIABLE other ERROR_QUIET OUTPUT_QUIET)
    if(NOT other)
        set(${out} "${source}" PARENT_SCOPE)
    endif()
endfunction()
