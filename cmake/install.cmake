# Installs headers, libraries, the CMake package and the pkg-config file. None of them contains an absolute path, so
# that the prefix can be moved.
include(CMakePackageConfigHelpers)

install(FILES "${lib_dir}/${sinkcache_so_full}" DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
install(FILES "${lib_dir}/${sinkcache_so_abi}" "${lib_dir}/${sinkcache_so}" "${lib_dir}/libsinkcache.a"
        DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES include/sinkcache.h include/sinkcache.hpp DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/sinkcache")
configure_package_config_file(cmake/sinkcacheConfig.cmake.in sinkcacheConfig.cmake INSTALL_DESTINATION "${package_dir}"
                              PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
# Before 1.0 a minor release may break the ABI; from 1.0 on only a major one.
if(PROJECT_VERSION_MAJOR EQUAL 0)
    set(compatibility SameMinorVersion)
else()
    set(compatibility SameMajorVersion)
endif()
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/sinkcacheConfigVersion.cmake"
                                 COMPATIBILITY ${compatibility})
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/sinkcacheConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/sinkcacheConfigVersion.cmake"
        DESTINATION "${package_dir}")

file(RELATIVE_PATH prefix_from_pc "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" prefix_from_pc "${prefix_from_pc}")
configure_file(cmake/sinkcache.pc.in sinkcache.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/sinkcache.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
