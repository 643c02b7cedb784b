// Compiles device code into a shared object with the host's compiler.
#pragma once

#include <string>
#include <vector>

namespace skc_shim {

struct File {
    std::string name;
    std::string text;
};

struct Sources {
    File program;
    std::vector<File> headers;  // named as in #include

    // Whether all names are plain file names: the sources are written into a directory.
    bool names_are_safe() const;
};

struct Compiled {
    bool ok = false;
    std::string log;
    std::string object;
};

// Takes the object from the cache (directory SKC_SHIM_CACHE; no cache if unset), or runs the compiler.
// SKC_SHIM_CXXFLAGS replaces the additional flags that the shim was built with, such as those of sanitizers.
Compiled compile(const Sources& sources, const std::vector<std::string>& flags);

}  // namespace skc_shim
