# The static library exports what is in exports.txt and nothing else, and links beside another Rust static library that
# was built with LTO, in either order. PRELINK: the command that prelinked it, without its files.
#     cmake -DRUSTC=... -DTARGET=... -DCC=... -DFLAGS=... -DREADELF=... -DLIBRARY=... -DALLOWED=... -DINCLUDE=...
#           -DPRELINK=... -DSCRIPT=... -DRUN=... -DOUT=... -P check_static.cmake
execute_process(COMMAND ${READELF} -sW "${LIBRARY}" OUTPUT_VARIABLE symbols ERROR_QUIET COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "(GLOBAL|WEAK|UNIQUE) +[A-Z]+ +[0-9A-Z]+ [^\n]+" symbols "${symbols}")
list(FILTER symbols EXCLUDE REGEX " UND ")
list(TRANSFORM symbols REPLACE ".* " "")
# Of a sanitized build.
list(FILTER symbols EXCLUDE REGEX "^_*(asan|odr_asan|sancov)")
list(SORT symbols)
file(STRINGS "${ALLOWED}" allowed)
if(NOT symbols STREQUAL allowed)
    list(REMOVE_ITEM symbols ${allowed})
    message(FATAL_ERROR "${LIBRARY} also exports, or misses exports: ${symbols}")
endif()

separate_arguments(FLAGS UNIX_COMMAND "${FLAGS}")
file(MAKE_DIRECTORY "${OUT}")
set(target_option "")
if(TARGET)
    set(target_option --target ${TARGET})
endif()
set(system_libraries -lpthread -ldl -lgcc_s -lutil -lrt -lm)
foreach(lto fat thin)
    set(other "${OUT}/libother_${lto}.a")
    execute_process(COMMAND ${RUSTC} --edition 2024 --crate-type staticlib --crate-name other -O -C lto=${lto}
                    -C codegen-units=1 ${target_option} "${CMAKE_CURRENT_LIST_DIR}/packaging/other.rs" -o "${other}"
                    COMMAND_ERROR_IS_FATAL ANY)
    # Once as rustc made it, and once prelinked: a panic must still find its handler then.
    set(prelinked "${OUT}/libother_${lto}_prelinked.a")
    execute_process(COMMAND ${PRELINK} -DPREFIX=other_ "-DINPUT=${other}" "-DOUTPUT=${prelinked}" -P "${SCRIPT}"
                    COMMAND_ERROR_IS_FATAL ANY)
    foreach(first "${LIBRARY}" "${other}" "${prelinked}")
        set(second "${LIBRARY}")
        if(first STREQUAL LIBRARY)
            set(second "${other}")
        endif()
        foreach(collect "" -Wl,--gc-sections)
            execute_process(COMMAND ${CC} -std=c11 ${FLAGS} -I${INCLUDE}
                            "${CMAKE_CURRENT_LIST_DIR}/packaging/other_beside.c"
                            -o "${OUT}/program" "${first}" "${second}" ${system_libraries} ${collect}
                            RESULT_VARIABLE failed ERROR_VARIABLE text)
            if(failed)
                message(FATAL_ERROR "${first} before ${second}:\n${text}")
            endif()
            execute_process(COMMAND ${RUN} "${OUT}/program" COMMAND_ERROR_IS_FATAL ANY)
        endforeach()
    endforeach()
endforeach()
