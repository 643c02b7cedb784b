# The library as it is installed and consumed.
set(prefix "${CMAKE_CURRENT_BINARY_DIR}/prefix")
# A sanitized library needs programs of the same kind.
string(REPLACE ";" " " sanitize_flags "${sanitize}")

add_test(NAME exports COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DLIBRARY=${lib_dir}/${sinkcache_so}
         -DHEADER=${PROJECT_SOURCE_DIR}/include/sinkcache.h -DALLOWED=${CMAKE_CURRENT_SOURCE_DIR}/exports.txt
         -P ${CMAKE_CURRENT_SOURCE_DIR}/check_exports.cmake)
add_test(NAME library COMMAND ${CMAKE_COMMAND} -DREADELF=${CMAKE_READELF} -DFOLDER=${lib_dir}
         -DSONAME=${sinkcache_so_abi} -DFULL=${sinkcache_so_full} -P ${CMAKE_CURRENT_SOURCE_DIR}/check_library.cmake)

function(skc_consumer name)
    set(build "${CMAKE_CURRENT_BINARY_DIR}/consumers/${name}")
    add_test(NAME consumer_${name} COMMAND ${CMAKE_CTEST_COMMAND}
        --build-and-test "${CMAKE_CURRENT_SOURCE_DIR}/consumers/${name}" "${build}"
        --build-generator ${CMAKE_GENERATOR} --build-makeprogram ${CMAKE_MAKE_PROGRAM}
        --build-options -DCMAKE_C_COMPILER=${CMAKE_C_COMPILER} -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
                        -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}
                        "-DCMAKE_C_FLAGS=${sanitize_flags}" "-DCMAKE_CXX_FLAGS=${sanitize_flags}" ${ARGN}
        --test-command ${CMAKE_CTEST_COMMAND} --output-on-failure)
endfunction()
# The same cargo folder and settings: nothing is compiled twice.
string(REPLACE ";" "\\;" cargo_flags_escaped "${SINKCACHE_CARGO_FLAGS}")
string(REPLACE ";" "\\;" cargo_env_escaped "${SINKCACHE_CARGO_ENV}")
skc_consumer(add_subdirectory -DSINKCACHE_SOURCE=${PROJECT_SOURCE_DIR}
    -DSINKCACHE_CARGO=${SINKCACHE_CARGO} -DSINKCACHE_CARGO_TARGET_DIR=${SINKCACHE_CARGO_TARGET_DIR}
    -DSINKCACHE_CARGO_TARGET=${SINKCACHE_CARGO_TARGET} "-DSINKCACHE_CARGO_FLAGS=${cargo_flags_escaped}"
    "-DSINKCACHE_CARGO_ENV=${cargo_env_escaped}")

if(NOT SINKCACHE_INSTALL)
    return()
endif()
add_test(NAME install COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${prefix})
set_tests_properties(install PROPERTIES FIXTURES_SETUP installed)
add_test(NAME library_installed COMMAND ${CMAKE_COMMAND} -DREADELF=${CMAKE_READELF}
         -DFOLDER=${prefix}/${CMAKE_INSTALL_LIBDIR} -DSONAME=${sinkcache_so_abi} -DFULL=${sinkcache_so_full}
         -P ${CMAKE_CURRENT_SOURCE_DIR}/check_library.cmake)
skc_consumer(find_package -DCMAKE_PREFIX_PATH=${prefix} -DWANTED_VERSION=${PROJECT_VERSION})
set_tests_properties(library_installed consumer_find_package PROPERTIES FIXTURES_REQUIRED installed)

find_program(PKG_CONFIG_PROGRAM pkg-config)
if(PKG_CONFIG_PROGRAM)
    add_test(NAME pkg_config COMMAND ${CMAKE_COMMAND} -DPKG_CONFIG=${PKG_CONFIG_PROGRAM} -DCC=${CMAKE_C_COMPILER}
             "-DFLAGS=${sanitize_flags}" -DSOURCE=${PROJECT_SOURCE_DIR}/examples/c/minimal.c -DPREFIX=${prefix}
             -DLIBDIR=${CMAKE_INSTALL_LIBDIR} -DVERSION=${PROJECT_VERSION} -DOUT=${CMAKE_CURRENT_BINARY_DIR}/pkg_config
             -P ${CMAKE_CURRENT_SOURCE_DIR}/check_pkg_config.cmake)
    set_tests_properties(pkg_config PROPERTIES FIXTURES_REQUIRED installed)
endif()
