#include "compiler.hpp"

#include <cstdio>
#include <sstream>

#include "files.hpp"
#include "image.hpp"

// Set by build.sh: the directory of ptx_host.hpp, the compiler, and its additional flags.
#if !defined(SKC_SHIM_DIR) || !defined(SKC_SHIM_CXX) || !defined(SKC_SHIM_KERNEL_FLAGS)
#error "build with tools/cuda_shim/build.sh"
#endif

namespace fs = std::filesystem;

namespace skc_shim {
namespace {

std::vector<std::string> arguments(const std::vector<std::string>& flags) {
    std::vector<std::string> all = {SKC_SHIM_CXX, "-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden",
                                    "-fno-gnu-unique", "-ffp-contract=off", "-Wno-unknown-pragmas", "-DSKC_HOST_SHIM",
                                    "-I" + environment("SKC_SHIM_INCLUDE", SKC_SHIM_DIR)};
    all.insert(all.end(), flags.begin(), flags.end());
    std::istringstream additional(environment("SKC_SHIM_CXXFLAGS", SKC_SHIM_KERNEL_FLAGS));
    for (std::string flag; additional >> flag;) all.push_back(flag);
    return all;
}

// A hash of everything that the result depends on.
std::string cache_key(const Sources& sources, const std::vector<std::string>& args) {
    std::string all = __VERSION__;
    auto add = [&all](const std::string& text) {
        all.append(1, '\0').append(std::to_string(text.size())).append(text);
    };
    for (const std::string& arg : args) add(arg);
    add(sources.program.name);
    add(sources.program.text);
    for (const File& header : sources.headers) {
        add(header.name);
        add(header.text);
    }
    fs::path shim = environment("SKC_SHIM_INCLUDE", SKC_SHIM_DIR);
    for (const char* name : {"ptx_host.hpp", "device_thread.hpp", "convert.hpp"}) add(read_file(shim / name));
    char text[40];
    std::snprintf(text, sizeof text, "%016llx%016llx",
                  static_cast<unsigned long long>(hash_bytes(all.data(), all.size(), 0)),
                  static_cast<unsigned long long>(hash_bytes(all.data(), all.size(), all.size())));
    return text;
}

}  // namespace

Compiled compile(const Sources& sources, const Target& target) {
    std::vector<std::string> args = arguments(target.flags);
    std::string cache = environment("SKC_SHIM_CACHE", "");
    fs::path entry = cache.empty() ? fs::path() : fs::path(cache) / (cache_key(sources, args) + ".so");
    Compiled result;
    if (!entry.empty()) {
        result.object = read_file(entry);
        if (!result.object.empty()) {
            result.ok = true;
            return result;
        }
    }
    Scratch scratch;
    bool written = !scratch.path().empty() && write_file(scratch.path() / sources.program.name, sources.program.text);
    for (const File& header : sources.headers) {
        written = written && write_file(scratch.path() / header.name, header.text);
    }
    if (!written) {
        result.log = "cannot write sources to a temporary directory\n";
        return result;
    }
    fs::path object = scratch.path() / ".object", log = scratch.path() / ".log";
    for (const std::string& arg :
         {std::string("-x"), std::string("c++"), (scratch.path() / sources.program.name).string(), std::string("-o"),
          object.string()}) {
        args.push_back(arg);
    }
    result.ok = run_program(args, log);
    result.log = read_file(log);
    if (result.ok) result.object = read_file(object);
    if (result.ok && !entry.empty()) store(entry, result.object);
    return result;
}

}  // namespace skc_shim
