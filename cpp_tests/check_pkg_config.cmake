# What pkg-config says compiles, links and runs the C example, shared and static.
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
    execute_process(COMMAND ${PKG_CONFIG} ${query} OUTPUT_VARIABLE said OUTPUT_STRIP_TRAILING_WHITESPACE
                    COMMAND_ERROR_IS_FATAL ANY)
    if(kind STREQUAL static)
        # pkg-config leaves the choice between .so and .a to the linker.
        string(REPLACE "-lsinkcache" "-l:libsinkcache.a" said "${said}")
    endif()
    separate_arguments(said UNIX_COMMAND "${said}")
    execute_process(COMMAND ${CC} -std=c11 ${flags} "${SOURCE}" -o "${OUT}_${kind}" ${said} COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND "${OUT}_${kind}" COMMAND_ERROR_IS_FATAL ANY)
endforeach()
