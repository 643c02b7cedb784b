# For the project's own programs and tests: compiler flags, and tests that build a project which uses the library.

# Compiler and linker flags of SINKCACHE_SANITIZE, as a list and as a command line.
set(sanitize "")
if(SINKCACHE_SANITIZE)
    set(sanitize -fsanitize=${SINKCACHE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
endif()
string(REPLACE ";" " " sanitize_flags "${sanitize}")

# Warnings and sanitizers. Warnings are errors here only, not in a project that adds this one as a subdirectory.
if(NOT TARGET skc_dev_flags)
    add_library(skc_dev_flags INTERFACE)
    target_compile_options(skc_dev_flags INTERFACE -Wall -Wextra -Wpedantic ${sanitize})
    if(SINKCACHE_BUILD_TESTS)
        target_compile_options(skc_dev_flags INTERFACE -Werror)
    endif()
    target_link_options(skc_dev_flags INTERFACE ${sanitize})
endif()

# A test that configures, builds and tests the project in `source`. More arguments: its CMake options.
function(skc_consumer_test name source)
    add_test(NAME ${name} COMMAND ${CMAKE_CTEST_COMMAND}
        --build-and-test "${source}" "${CMAKE_CURRENT_BINARY_DIR}/consumers/${name}"
        --build-generator ${CMAKE_GENERATOR} --build-makeprogram ${CMAKE_MAKE_PROGRAM}
        --build-options -DCMAKE_C_COMPILER=${CMAKE_C_COMPILER} -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
                        -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}
                        "-DCMAKE_C_FLAGS=${sanitize_flags}" "-DCMAKE_CXX_FLAGS=${sanitize_flags}" ${ARGN}
        --test-command ${CMAKE_CTEST_COMMAND} --output-on-failure)
endfunction()

# The same for a project that adds the sources in SINKCACHE_SOURCE as a subdirectory, with the cargo folder and settings
# of this build, so that the library is not compiled again.
function(skc_subdirectory_test name source)
    string(REPLACE ";" "\\;" cargo_flags "${SINKCACHE_CARGO_FLAGS}")
    string(REPLACE ";" "\\;" cargo_env "${SINKCACHE_CARGO_ENV}")
    skc_consumer_test(${name} "${source}" -DSINKCACHE_SOURCE=${PROJECT_SOURCE_DIR}
        -DSINKCACHE_CARGO=${SINKCACHE_CARGO} -DSINKCACHE_CARGO_TARGET_DIR=${SINKCACHE_CARGO_TARGET_DIR}
        -DSINKCACHE_CARGO_TARGET=${SINKCACHE_CARGO_TARGET} "-DSINKCACHE_CARGO_FLAGS=${cargo_flags}"
        "-DSINKCACHE_CARGO_ENV=${cargo_env}")
endfunction()
