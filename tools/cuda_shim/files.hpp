// Files and programs, for compilers.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace skc_shim {

std::string environment(const char* name, const char* default_value);

// The empty string if there is no such file.
std::string read_file(const std::filesystem::path& path);
bool write_file(const std::filesystem::path& path, const std::string& text);

// Written under another name and renamed, so that other processes never see half of it. A failure is not reported.
void store(const std::filesystem::path& path, const std::string& text);

// Runs a program with its output in a file, without LD_PRELOAD, which loads AddressSanitizer for the tests only. True
// if it ended with 0.
bool run_program(const std::vector<std::string>& args, const std::filesystem::path& log);

// A temporary directory, removed in the destructor.
class Scratch {
public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;  // empty if none could be made
};

}  // namespace skc_shim
