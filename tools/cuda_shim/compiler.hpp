// Device code to a shared object, by the host's compiler.
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
    std::vector<File> headers;  // by the name they are included by

    // Whether all are plain file names: they are written into a directory.
    bool names_are_safe() const;
};

struct Compiled {
    bool ok = false;
    std::string log;
    std::string object;
};

// From the cache (SKC_SHIM_CACHE names its directory; none without), or by running the compiler. SKC_SHIM_CXXFLAGS replaces
// the flags that the shim was built to use, such as those of sanitizers.
Compiled compile(const Sources& sources, const std::vector<std::string>& flags);

}  // namespace skc_shim
