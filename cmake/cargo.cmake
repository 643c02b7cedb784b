# Runs cargo, copies the libraries into the layout of an installation, and defines the imported targets.
if(NOT UNIX OR APPLE)
    message(FATAL_ERROR "sinkcache: this CMake build supports ELF shared libraries only; on other systems, call cargo")
endif()
find_program(SINKCACHE_CARGO cargo HINTS "$ENV{HOME}/.cargo/bin" REQUIRED)
find_package(Threads REQUIRED)

set(SINKCACHE_CARGO_TARGET_DIR "${CMAKE_CURRENT_BINARY_DIR}/cargo" CACHE PATH "CARGO_TARGET_DIR")
set(SINKCACHE_CARGO_TARGET "" CACHE STRING "Target triple; empty = cargo's default, or the toolchain file's target")
set(SINKCACHE_CARGO_FLAGS "" CACHE STRING "Additional arguments of cargo build, a list")
set(SINKCACHE_CARGO_ENV "" CACHE STRING "Environment of cargo, a list of NAME=VALUE")
option(SINKCACHE_PRELINK "The static library exports skc_ symbols alone, not those of Rust's standard library" ON)

include("${CMAKE_CURRENT_LIST_DIR}/cargo_target.cmake")
sinkcache_set_cross_target()
sinkcache_linker_flags(linker_flags)
if(SINKCACHE_PRELINK AND NOT (CMAKE_OBJCOPY AND CMAKE_READELF AND CMAKE_AR))
    message(WARNING "sinkcache: no objcopy, readelf or ar (CMAKE_OBJCOPY=${CMAKE_OBJCOPY}, "
        "CMAKE_READELF=${CMAKE_READELF}, CMAKE_AR=${CMAKE_AR}): the static library exports the symbols of Rust's "
        "standard library too, and may not link beside another Rust library. SINKCACHE_PRELINK=OFF silences this")
    set(SINKCACHE_PRELINK OFF)
endif()

if(CMAKE_BUILD_TYPE STREQUAL "Debug")
    set(profile dev)
    set(profile_dir debug)
else()
    set(profile release)
    set(profile_dir release)
endif()
set(cargo_flags ${SINKCACHE_CARGO_FLAGS})
set(cargo_env ${SINKCACHE_CARGO_ENV})
if(SINKCACHE_CUBINS)
    list(APPEND cargo_flags --features cubins)
    # In the command, so that a change of the values rebuilds.
    foreach(name SINKCACHE_CUBIN_ARCHS SINKCACHE_CUBIN_SHAPES)
        if(${name})
            list(APPEND cargo_env "${name}=${${name}}")
        endif()
    endforeach()
endif()
set(cargo_out "${SINKCACHE_CARGO_TARGET_DIR}/${profile_dir}")
if(SINKCACHE_CARGO_TARGET)
    # With --target, also of the host, cargo builds into a folder named after the triple.
    list(APPEND cargo_flags --target ${SINKCACHE_CARGO_TARGET})
    set(cargo_out "${SINKCACHE_CARGO_TARGET_DIR}/${SINKCACHE_CARGO_TARGET}/${profile_dir}")
endif()
if(CMAKE_CROSSCOMPILING)
    # Cargo links with the toolchain file's compiler, unless the user has named another.
    string(TOUPPER "${SINKCACHE_CARGO_TARGET}" cargo_variable)
    string(REPLACE "-" "_" cargo_variable "CARGO_TARGET_${cargo_variable}")
    if(NOT DEFINED ENV{${cargo_variable}_LINKER})
        list(PREPEND cargo_env "${cargo_variable}_LINKER=${CMAKE_C_COMPILER}")
    endif()
    if(linker_flags AND NOT DEFINED ENV{${cargo_variable}_RUSTFLAGS} AND NOT DEFINED ENV{RUSTFLAGS})
        list(TRANSFORM linker_flags PREPEND "-Clink-arg=" OUTPUT_VARIABLE rust_flags)
        list(JOIN rust_flags " " rust_flags)
        list(PREPEND cargo_env "${cargo_variable}_RUSTFLAGS=${rust_flags}")
    endif()
endif()

set(lib_dir "${CMAKE_CURRENT_BINARY_DIR}/${CMAKE_INSTALL_LIBDIR}")
set(sinkcache_so "libsinkcache.so")
set(sinkcache_so_abi "libsinkcache.so.${PROJECT_VERSION_MAJOR}")
set(sinkcache_so_full "libsinkcache.so.${PROJECT_VERSION}")
set(source_patterns src/*.rs src/*.cu src/*.cuh)
list(TRANSFORM source_patterns PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/")
file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS ${source_patterns})

set(static_command ${CMAKE_COMMAND} -E copy "${cargo_out}/libsinkcache.a" "${lib_dir}/libsinkcache.a")
if(SINKCACHE_PRELINK)
    list(JOIN linker_flags " " prelink_flags)
    # With CC="ccache gcc" the compiler is an argument of a launcher.
    string(STRIP "${CMAKE_C_COMPILER_ARG1} ${prelink_flags}" prelink_flags)
    set(prelink ${CMAKE_COMMAND} -DCC=${CMAKE_C_COMPILER} "-DFLAGS=${prelink_flags}" -DREADELF=${CMAKE_READELF}
        -DOBJCOPY=${CMAKE_OBJCOPY} -DAR=${CMAKE_AR})
    set(static_command ${prelink} -DPREFIX=skc_ "-DINPUT=${cargo_out}/libsinkcache.a"
        "-DOUTPUT=${lib_dir}/libsinkcache.a" -P "${CMAKE_CURRENT_LIST_DIR}/prelink.cmake")
endif()

add_custom_command(
    OUTPUT "${lib_dir}/${sinkcache_so_full}" "${lib_dir}/libsinkcache.a"
    BYPRODUCTS "${lib_dir}/${sinkcache_so_abi}" "${lib_dir}/${sinkcache_so}"
    COMMAND ${CMAKE_COMMAND} -E env --unset=CARGO_BUILD_TARGET
            "CARGO_TARGET_DIR=${SINKCACHE_CARGO_TARGET_DIR}" ${cargo_env}
            ${SINKCACHE_CARGO} build -p sinkcache --lib --profile ${profile} ${cargo_flags}
    COMMAND ${CMAKE_COMMAND} -E make_directory "${lib_dir}"
    COMMAND ${CMAKE_COMMAND} -E copy "${cargo_out}/libsinkcache.so" "${lib_dir}/${sinkcache_so_full}"
    COMMAND ${CMAKE_COMMAND} -E create_symlink ${sinkcache_so_full} "${lib_dir}/${sinkcache_so_abi}"
    COMMAND ${CMAKE_COMMAND} -E create_symlink ${sinkcache_so_abi} "${lib_dir}/${sinkcache_so}"
    COMMAND ${static_command}
    DEPENDS ${rust_sources} Cargo.toml Cargo.lock build.rs cmake/prelink.cmake
    WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
    COMMENT "cargo build (${profile})"
    USES_TERMINAL VERBATIM)
add_custom_target(sinkcache_cargo ALL DEPENDS "${lib_dir}/${sinkcache_so_full}" "${lib_dir}/libsinkcache.a")

add_library(sinkcache::sinkcache SHARED IMPORTED GLOBAL)
set_target_properties(sinkcache::sinkcache PROPERTIES
    IMPORTED_LOCATION "${lib_dir}/${sinkcache_so_full}"
    IMPORTED_SONAME "${sinkcache_so_abi}")

add_library(sinkcache::sinkcache_static STATIC IMPORTED GLOBAL)
set_target_properties(sinkcache::sinkcache_static PROPERTIES IMPORTED_LOCATION "${lib_dir}/libsinkcache.a")
# The libraries that `rustc --print native-static-libs` lists.
target_link_libraries(sinkcache::sinkcache_static INTERFACE Threads::Threads ${CMAKE_DL_LIBS} gcc_s util rt m)

foreach(target sinkcache::sinkcache sinkcache::sinkcache_static)
    target_include_directories(${target} INTERFACE "${CMAKE_CURRENT_SOURCE_DIR}/include")
    add_dependencies(${target} sinkcache_cargo)
endforeach()
