# ggml and llama.cpp for the examples: those found in CMAKE_PREFIX_PATH, else built by scripts/llama_cpp.
include_guard(GLOBAL)

# A macro: imported targets belong to the directory that asks.
macro(sinkcache_find_ggml)
    find_package(ggml CONFIG QUIET)
    if(NOT ggml_FOUND)
        message(STATUS "ggml: scripts/llama_cpp builds it once (minutes)")
        execute_process(COMMAND "${PROJECT_SOURCE_DIR}/scripts/llama_cpp"
                        OUTPUT_VARIABLE sinkcache_llama_prefix OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
        find_package(ggml CONFIG REQUIRED PATHS "${sinkcache_llama_prefix}" NO_DEFAULT_PATH)
    endif()
endmacro()
