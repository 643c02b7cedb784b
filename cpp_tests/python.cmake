# The Python examples, with the first interpreter that has NumPy.
set(python "")
foreach(candidate ${Python3_EXECUTABLE} /usr/bin/python3 /usr/local/bin/python3)
    if(NOT python AND EXISTS ${candidate})
        execute_process(COMMAND ${candidate} -c "import numpy" RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
        if(NOT failed)
            set(python ${candidate})
        endif()
    endif()
endforeach()
set(example ${PROJECT_SOURCE_DIR}/examples/python/stream_numpy.py)
if(NOT python)
    message(STATUS "sinkcache: no python3 with NumPy, the Python examples are skipped")
    add_test(NAME example_python COMMAND ${CMAKE_COMMAND} -E echo "skipped: no python3 with NumPy")
    set_tests_properties(example_python PROPERTIES SKIP_REGULAR_EXPRESSION "skipped")
elseif(SINKCACHE_CARGO_ENV MATCHES "sanitizer")
    # A sanitized library needs a sanitized Python.
    add_test(NAME example_python COMMAND ${CMAKE_COMMAND} -E echo "skipped: the library is sanitized")
    set_tests_properties(example_python PROPERTIES SKIP_REGULAR_EXPRESSION "skipped")
else()
    add_test(NAME example_python COMMAND ${CMAKE_COMMAND} -E env PYTHONDONTWRITEBYTECODE=1
             SINKCACHE_LIBRARY=${lib_dir}/${sinkcache_so} ${python} ${example})
endif()

# Skipped without PyTorch or a CUDA device.
if(python AND NOT SINKCACHE_CARGO_ENV MATCHES "sanitizer")
    add_test(NAME example_torch COMMAND ${CMAKE_COMMAND} -E env PYTHONDONTWRITEBYTECODE=1
             SINKCACHE_LIBRARY=${lib_dir}/${sinkcache_so}
             ${python} ${PROJECT_SOURCE_DIR}/examples/python/stream_torch.py)
    set_tests_properties(example_torch PROPERTIES SKIP_REGULAR_EXPRESSION "skipped: no CUDA device;skipped: no PyTorch")
endif()
