# A program that is linked with the library in cargo's folder starts: there is a file of the library's SONAME.
#     cmake -DCC=... -DFLAGS=... -DSOURCE=... -DINCLUDE=... -DFOLDER=... -DRUN=... -DOUT=... -P check_cargo.cmake
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
execute_process(COMMAND ${CC} -std=c11 ${flags} -I${INCLUDE} "${SOURCE}" -o "${OUT}" -L${FOLDER} -lsinkcache
                COMMAND_ERROR_IS_FATAL ANY)
set(ENV{LD_LIBRARY_PATH} "${FOLDER}")
execute_process(COMMAND ${RUN} "${OUT}" COMMAND_ERROR_IS_FATAL ANY)
