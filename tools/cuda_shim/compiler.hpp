// Compiles device code: the stand-in with the host's compiler into a shared object, tools/ptx with NVIDIA's into PTX.
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

// What the options of a compilation select.
struct Target {
    int arch = 75;
    std::string arch_name = "75";  // as the option has it: "90a"
    bool cubin = false;            // for a real architecture, "sm_90", not a virtual one
    std::vector<std::string> flags;  // -std and -D
};

struct Compiled {
    bool ok = false;
    std::string log;
    std::string object;
};

// Takes the object from the cache (directory SKC_SHIM_CACHE; no cache if unset), or runs the compiler. On the stand-in
// SKC_SHIM_CXXFLAGS replaces the additional flags that it was built with, such as those of sanitizers.
Compiled compile(const Sources& sources, const Target& target);

}  // namespace skc_shim
