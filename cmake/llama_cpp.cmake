# ggml and llama.cpp for the examples: those found in CMAKE_PREFIX_PATH, else built by scripts/llama_cpp.
include_guard(GLOBAL)

# Where scripts/llama_cpp has installed them: one build for all build trees, sanitized ones too.
function(sinkcache_llama_prefix out)
    message(STATUS "sinkcache: no installed llama.cpp was found; scripts/llama_cpp builds one (minutes, the first time)")
    # CMake has put the compiler's path into CXX, which would make another key of the same compiler.
    set(env "CXX=${CMAKE_CXX_COMPILER}")
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        set(env --unset=CXX)
    endif()
    execute_process(COMMAND ${CMAKE_COMMAND} -E env ${env} "${PROJECT_SOURCE_DIR}/scripts/llama_cpp"
                    OUTPUT_VARIABLE prefix OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "sinkcache: scripts/llama_cpp failed; point CMAKE_PREFIX_PATH at an installed llama.cpp")
    endif()
    set(${out} "${prefix}" PARENT_SCOPE)
endfunction()

# A macro: imported targets belong to the directory that asks.
macro(sinkcache_find_ggml)
    find_package(ggml CONFIG QUIET)
    if(NOT ggml_FOUND)
        sinkcache_llama_prefix(sinkcache_llama_at)
        find_package(ggml CONFIG REQUIRED PATHS "${sinkcache_llama_at}" NO_DEFAULT_PATH)
        # Asked again at the next configure: the version may have moved on.
        unset(ggml_DIR CACHE)
    endif()
endmacro()
