// Device code to PTX, by NVIDIA's NVRTC.
//
// NVRTC opens libcuda.so.1 itself and does not get on with this one, so it runs in a process of its own.
#include "compiler.hpp"

#include <algorithm>
#include <cstdio>

#include "files.hpp"
#include "image.hpp"

// Set by build.sh: the folder of nvrtc_ptx.py, and Python.
#if !defined(SKC_PTX_DIR) || !defined(SKC_PTX_PYTHON)
#error "build with tools/ptx/build.sh"
#endif

namespace fs = std::filesystem;

namespace skc_shim {
namespace {

// SKC_PTX_REPLACE: a mistake made on purpose, in every text: a file of "old\n===>\nnew\n====\n". How often it was made
// is printed: a mistake that no text had room for would prove nothing.
void replace(std::vector<File*> files) {
    std::string path = environment("SKC_PTX_REPLACE", "");
    if (path.empty()) return;
    std::string all = read_file(path);
    size_t at = 0, made = 0;
    for (;;) {
        size_t arrow = all.find("\n===>\n", at), end = all.find("\n====\n", at);
        if (arrow == std::string::npos || end == std::string::npos) break;
        std::string from = all.substr(at, arrow - at), to = all.substr(arrow + 6, end - arrow - 6);
        for (File* file : files) {
            for (size_t k = file->text.find(from); k != std::string::npos; k = file->text.find(from, k + to.size())) {
                file->text.replace(k, from.size(), to);
                ++made;
            }
        }
        at = end + 6;
    }
    std::fprintf(stderr, "ptx: %zu replacements\n", made);
}

std::string cache_key(const Sources& sources, const std::vector<std::string>& options) {
    uint64_t key = 0;
    auto add = [&key](const std::string& text) { key = hash_bytes(text.c_str(), text.size() + 1, key + 1); };
    add(sources.program.name);
    add(sources.program.text);
    for (const File& header : sources.headers) {
        add(header.name);
        add(header.text);
    }
    for (const std::string& option : options) add(option);
    add(read_file(fs::path(SKC_PTX_DIR) / "nvrtc_ptx.py"));
    char text[24];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(key));
    return text;
}

// A first line by which reports name the variant.
std::string label(const Sources& sources, const Target& target) {
    std::string text = "// " + sources.program.name;
    for (const std::string& flag : target.flags) {
        if (flag.rfind("-DSKC_", 0) == 0) text += " " + flag.substr(6);
    }
    return text + " sm_" + target.arch_name + "\n";
}

}  // namespace

Compiled compile(const Sources& given, const Target& target) {
    Sources sources = given;
    std::vector<File*> files = {&sources.program};
    for (File& header : sources.headers) files.push_back(&header);
    replace(files);
    // Lines of the sources, for reports.
    std::vector<std::string> options = {"--gpu-architecture=compute_" + target.arch_name, "-lineinfo"};
    options.insert(options.end(), target.flags.begin(), target.flags.end());
    std::string cache = environment("SKC_SHIM_CACHE", "");
    fs::path entry = cache.empty() ? fs::path() : fs::path(cache) / (cache_key(sources, options) + ".ptx");
    Compiled result;
    if (!entry.empty()) {
        result.object = read_file(entry);
        if (!result.object.empty()) {
            result.ok = true;
            return result;
        }
    }
    Scratch scratch;
    bool written = !scratch.path().empty();
    for (const File* file : files) written = written && write_file(scratch.path() / file->name, file->text);
    if (!written) {
        result.log = "cannot write sources to a temporary directory\n";
        return result;
    }
    fs::path ptx = scratch.path() / ".ptx", log = scratch.path() / ".log";
    // The compiler that the library is to find is this one; nvrtc_ptx.py is to find NVIDIA's.
    std::vector<std::string> args = {"env",
                                     "-u",
                                     "LD_LIBRARY_PATH",
                                     "-u",
                                     "SINKCACHE_NVRTC_DIR",
                                     SKC_PTX_PYTHON,
                                     "-B",
                                     (fs::path(SKC_PTX_DIR) / "nvrtc_ptx.py").string(),
                                     (scratch.path() / sources.program.name).string(),
                                     ptx.string()};
    args.insert(args.end(), options.begin(), options.end());
    result.ok = run_program(args, log);
    result.log = read_file(log);
    if (!result.ok) std::fprintf(stderr, "ptx: does not compile:\n%s\n", result.log.c_str());
    if (result.ok) result.object = label(sources, target) + read_file(ptx);
    if (result.ok && !entry.empty()) store(entry, result.object);
    return result;
}

}  // namespace skc_shim
