# The C example compiles, links and runs with the flags from pkg-config, with the shared and the static library.
#     cmake -DPKG_CONFIG=... -DCC=... -DFLAGS=... -DSOURCE=... -DPREFIX=... -DLIBDIR=... -DVERSION=... -DOUT=... -P ...
set(ENV{PKG_CONFIG_PATH} "${PREFIX}/${LIBDIR}/pkgconfig")
set(ENV{LD_LIBRARY_PATH} "${PREFIX}/${LIBDIR}")
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
execute_process(COMMAND ${PKG_CONFIG} --modversion sinkcache OUTPUT_VARIABLE version
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT version STREQUAL VERSION)
    message(FATAL_ERROR "pkg-config has version ${version}, not ${VERSION}")
endif()
foreach(kind shared static)
    set(query --cflags --libs sinkcache)
    if(kind STREQUAL static)
        list(PREPEND query --static)
    endif()
    execute_process(COMMAND ${PKG_CONFIG} ${query} OUTPUT_VARIABLE options OUTPUT_STRIP_TRAILING_WHITESPACE
                    COMMAND_ERROR_IS_FATAL ANY)
    if(kind STREQUAL static)
        # pkg-config leaves the choice between .so and .a to the linker.
        string(REPLACE "-lsinkcache" "-l:libsinkcache.a" options "${options}")
    endif()
    separate_arguments(options UNIX_COMMAND "${options}")
    execute_process(COMMAND ${CC} -std=c11 ${flags} "${SOURCE}" -o "${OUT}_${kind}" ${options}
                    COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND "${OUT}_${kind}" COMMAND_ERROR_IS_FATAL ANY)
endforeach()
