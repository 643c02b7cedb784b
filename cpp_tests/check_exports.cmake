# The shared library exports exactly the functions in exports.txt, and the header declares the same.
#     cmake -DNM=... -DLIBRARY=... -DHEADER=... -DALLOWED=... -P check_exports.cmake
execute_process(COMMAND ${NM} -D --defined-only "${LIBRARY}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[A-Za-z] [^\n]+" symbols "${symbols}")
list(TRANSFORM symbols REPLACE "^[A-Za-z] " "")
# Symbols of the sanitizer runtime in a sanitized build.
list(FILTER symbols EXCLUDE REGEX "^__(asan|odr_asan|sancov)")
list(SORT symbols)
file(STRINGS "${ALLOWED}" allowed)
if(NOT symbols STREQUAL allowed)
    set(extra ${symbols})
    set(missing ${allowed})
    list(REMOVE_ITEM extra ${allowed})
    list(REMOVE_ITEM missing ${symbols})
    message(FATAL_ERROR "exported but not allowed: ${extra}; allowed but not exported: ${missing}")
endif()

file(READ "${HEADER}" header)
string(REGEX REPLACE "/\\*[^*]*\\*+([^/*][^*]*\\*+)*/" "" header "${header}")
string(REGEX MATCHALL "skc_[a-z_]+\\(" declared "${header}")
list(TRANSFORM declared REPLACE "\\($" "")
# Callback types are written (*skc_..._fn)( and do not match.
list(SORT declared)
if(NOT declared STREQUAL allowed)
    message(FATAL_ERROR "the header declares ${declared}, the library exports ${allowed}")
endif()
