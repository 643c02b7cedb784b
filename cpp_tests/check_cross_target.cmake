# A cross build builds the Rust library for the toolchain file's target, or says that it does not know the target.
#     cmake -DSOURCE=... -DCARGO=... -DOUT=... -P check_cross_target.cmake
cmake_minimum_required(VERSION 3.20)
include("${SOURCE}/cmake/cargo_target.cmake")
function(expect system processor machine want)
    sinkcache_rust_target(got "${system}" "${processor}" "${machine}")
    if(NOT got STREQUAL want)
        message(SEND_ERROR "${system} ${processor} '${machine}': '${got}', not '${want}'")
    endif()
endfunction()
expect(Linux aarch64 aarch64-linux-gnu aarch64-unknown-linux-gnu)
expect(Linux ARM64 "" aarch64-unknown-linux-gnu)
expect(Linux aarch64 aarch64-alpine-linux-musl aarch64-unknown-linux-musl)
expect(Linux x86_64 x86_64-pc-linux-gnu x86_64-unknown-linux-gnu)
expect(Linux AMD64 x86_64-linux-musl x86_64-unknown-linux-musl)
expect(Linux riscv64 riscv64-linux-gnu riscv64gc-unknown-linux-gnu)
expect(Android aarch64 aarch64-none-linux-android aarch64-linux-android)
expect(FreeBSD amd64 x86_64-unknown-freebsd14 x86_64-unknown-freebsd)
# Others, and code for a part of a processor, have no answer.
expect(Linux mips mips-linux-gnu "")
expect(Linux x86_64 x86_64-linux-gnux32 "")
expect(Linux x86_64 i686-linux-gnu "")
expect(Linux aarch64 aarch64-poky-linux-uclibc "")
expect(QNX aarch64 aarch64-unknown-nto-qnx "")
expect(Generic aarch64 aarch64-none-elf "")

# The configuration of a build with this toolchain file; `text` gets what CMake says. The compiler prints its target and
# compiles nothing, so that the test needs no cross compiler.
function(configure name system processor machine)
    set(folder "${OUT}/${name}")
    file(REMOVE_RECURSE "${folder}")
    file(MAKE_DIRECTORY "${folder}")
    file(WRITE "${folder}/cc" "#!/bin/sh\nfor word; do :; done\n[ \"$word\" = -dumpmachine ] && echo ${machine}\n")
    file(CHMOD "${folder}/cc" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
    file(WRITE "${folder}/toolchain.cmake"
         "set(CMAKE_SYSTEM_NAME ${system})\nset(CMAKE_SYSTEM_PROCESSOR ${processor})\n"
         "set(CMAKE_C_COMPILER ${folder}/cc)\nset(CMAKE_C_COMPILER_FORCED ON)\nset(CMAKE_HAVE_LIBC_PTHREAD ON)\n"
         "set(CMAKE_C_COMPILER_ID_RUN ON)\n")
    execute_process(COMMAND ${CMAKE_COMMAND} -S "${SOURCE}" -B "${folder}/build" -G "Unix Makefiles"
                    "-DCMAKE_TOOLCHAIN_FILE=${folder}/toolchain.cmake" -DSINKCACHE_CARGO=${CARGO}
                    -DSINKCACHE_BUILD_TESTS=OFF -DSINKCACHE_BUILD_EXAMPLES=OFF ${ARGN}
                    RESULT_VARIABLE result OUTPUT_VARIABLE said ERROR_VARIABLE said)
    string(REGEX REPLACE "[ \n]+" " " said "${said}")
    set(text "${result}: ${said}" PARENT_SCOPE)
    set(rules "")
    if(result EQUAL 0)
        file(READ "${folder}/build/CMakeFiles/sinkcache_cargo.dir/build.make" rules)
    endif()
    set(rules "${rules}" PARENT_SCOPE)
endfunction()
function(expect_cargo target compiler)
    if(NOT rules MATCHES "--target ${target}[ \n]" OR NOT rules MATCHES "/${target}/release/libsinkcache.so"
       OR NOT rules MATCHES "_LINKER=[^ ]*/${compiler}/cc")
        message(SEND_ERROR "not built for ${target}: ${text}\n${rules}")
    endif()
endfunction()
configure(known Linux aarch64 aarch64-linux-gnu)
expect_cargo(aarch64-unknown-linux-gnu known)
configure(chosen Linux mips mips-linux-gnu -DSINKCACHE_CARGO_TARGET=riscv64gc-unknown-linux-musl)
expect_cargo(riscv64gc-unknown-linux-musl chosen)
configure(unknown Linux mips mips-linux-gnu)
if(text MATCHES "^0:" OR NOT text MATCHES "CMAKE_SYSTEM_PROCESSOR=mips .*set SINKCACHE_CARGO_TARGET")
    message(SEND_ERROR "a target that is not known: ${text}")
endif()
