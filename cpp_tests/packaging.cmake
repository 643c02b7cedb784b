# The exported symbols, the installed files, and projects that use the library.
set(prefix "${CMAKE_CURRENT_BINARY_DIR}/prefix")

add_test(NAME exports COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DLIBRARY=${lib_dir}/${sinkcache_so}
         -DHEADER=${PROJECT_SOURCE_DIR}/include/sinkcache.h -DALLOWED=${CMAKE_CURRENT_SOURCE_DIR}/exports.txt
         -P ${CMAKE_CURRENT_SOURCE_DIR}/check_exports.cmake)
add_test(NAME library COMMAND ${CMAKE_COMMAND} -DREADELF=${CMAKE_READELF} -DFOLDER=${lib_dir}
         -DSONAME=${sinkcache_so_abi} -DFULL=${sinkcache_so_full} -P ${CMAKE_CURRENT_SOURCE_DIR}/check_library.cmake)

# The static library beside another Rust library.
if(SINKCACHE_PRELINK)
    get_filename_component(cargo_dir "${SINKCACHE_CARGO}" DIRECTORY)
    find_program(SINKCACHE_RUSTC rustc HINTS "${cargo_dir}" REQUIRED)
    add_test(NAME library_static COMMAND ${CMAKE_COMMAND} -DRUSTC=${SINKCACHE_RUSTC} -DTARGET=${SINKCACHE_CARGO_TARGET}
             -DCC=${CMAKE_C_COMPILER} "-DFLAGS=${prelink_flags} ${sanitize_flags}" -DREADELF=${CMAKE_READELF}
             -DLIBRARY=${lib_dir}/libsinkcache.a -DALLOWED=${CMAKE_CURRENT_SOURCE_DIR}/exports.txt
             -DINCLUDE=${PROJECT_SOURCE_DIR}/include "-DPRELINK=${prelink}" "-DRUN=${CMAKE_CROSSCOMPILING_EMULATOR}"
             -DSCRIPT=${PROJECT_SOURCE_DIR}/cmake/prelink.cmake -DOUT=${CMAKE_CURRENT_BINARY_DIR}/library_static
             -P ${CMAKE_CURRENT_SOURCE_DIR}/check_static.cmake)
endif()
# As cargo leaves it, the shared library has a file of its SONAME beside it.
add_test(NAME library_of_cargo COMMAND ${CMAKE_COMMAND} -DCC=${CMAKE_C_COMPILER}
         "-DFLAGS=${prelink_flags} ${sanitize_flags}" -DSOURCE=${PROJECT_SOURCE_DIR}/examples/c/minimal.c
         -DINCLUDE=${PROJECT_SOURCE_DIR}/include -DFOLDER=${cargo_out} "-DRUN=${CMAKE_CROSSCOMPILING_EMULATOR}"
         -DOUT=${CMAKE_CURRENT_BINARY_DIR}/library_of_cargo -P ${CMAKE_CURRENT_SOURCE_DIR}/check_cargo.cmake)
# The target of cross builds.
add_test(NAME cross_target COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DCARGO=${SINKCACHE_CARGO}
         -DOUT=${CMAKE_CURRENT_BINARY_DIR}/cross_target -P ${CMAKE_CURRENT_SOURCE_DIR}/check_cross_target.cmake)

skc_subdirectory_test(consumer_add_subdirectory "${CMAKE_CURRENT_SOURCE_DIR}/consumers/add_subdirectory")

if(NOT SINKCACHE_INSTALL)
    return()
endif()
add_test(NAME install COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${prefix})
set_tests_properties(install PROPERTIES FIXTURES_SETUP installed)
add_test(NAME library_installed COMMAND ${CMAKE_COMMAND} -DREADELF=${CMAKE_READELF}
         -DFOLDER=${prefix}/${CMAKE_INSTALL_LIBDIR} -DSONAME=${sinkcache_so_abi} -DFULL=${sinkcache_so_full}
         -P ${CMAKE_CURRENT_SOURCE_DIR}/check_library.cmake)
skc_consumer_test(consumer_find_package "${CMAKE_CURRENT_SOURCE_DIR}/consumers/find_package"
                  -DCMAKE_PREFIX_PATH=${prefix} -DWANTED_VERSION=${PROJECT_VERSION})
set_tests_properties(library_installed consumer_find_package PROPERTIES FIXTURES_REQUIRED installed)

find_program(PKG_CONFIG_PROGRAM pkg-config)
if(PKG_CONFIG_PROGRAM)
    add_test(NAME pkg_config COMMAND ${CMAKE_COMMAND} -DPKG_CONFIG=${PKG_CONFIG_PROGRAM} -DCC=${CMAKE_C_COMPILER}
             "-DFLAGS=${sanitize_flags}" -DSOURCE=${PROJECT_SOURCE_DIR}/examples/c/minimal.c -DPREFIX=${prefix}
             -DLIBDIR=${CMAKE_INSTALL_LIBDIR} -DVERSION=${PROJECT_VERSION} -DOUT=${CMAKE_CURRENT_BINARY_DIR}/pkg_config
             -P ${CMAKE_CURRENT_SOURCE_DIR}/check_pkg_config.cmake)
    set_tests_properties(pkg_config PROPERTIES FIXTURES_REQUIRED installed)
endif()
