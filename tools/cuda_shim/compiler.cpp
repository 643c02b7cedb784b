#include "compiler.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "image.hpp"

extern char** environ;

// Set by build.sh: the directory of ptx_host.hpp, the compiler, and its additional flags.
#if !defined(SKC_SHIM_DIR) || !defined(SKC_SHIM_CXX) || !defined(SKC_SHIM_KERNEL_FLAGS)
#error "build with tools/cuda_shim/build.sh"
#endif

namespace fs = std::filesystem;

namespace skc_shim {
namespace {

std::string environment(const char* name, const char* default_value) {
    const char* value = std::getenv(name);
    return value ? value : default_value;
}

std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

bool write_file(const fs::path& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    file.close();
    return file.good();
}

// A temporary directory, removed in the destructor.
class Scratch {
public:
    Scratch() {
        std::string name = (fs::temp_directory_path() / "skc_shim_XXXXXX").string();
        if (mkdtemp(name.data())) path_ = name;
    }
    ~Scratch() {
        std::error_code ignored;
        if (!path_.empty()) fs::remove_all(path_, ignored);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

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

// Runs a program with its output in a file, without LD_PRELOAD, which loads AddressSanitizer for the tests only.
bool run(const std::vector<std::string>& args, const fs::path& log) {
    std::vector<char*> argv, env;
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    for (char** e = environ; *e; ++e) {
        if (std::strncmp(*e, "LD_PRELOAD=", 11) != 0) env.push_back(*e);
    }
    env.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t pid = 0;
    int error = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), env.data());
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
        write_file(log, "cannot run " + args[0] + ": " + std::strerror(error) + "\n");
        return false;
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Written under another name and renamed, so that other processes never see half of it.
void store(const fs::path& path, const std::string& object) {
    static std::atomic<unsigned> count{0};
    std::error_code ignored;
    fs::create_directories(path.parent_path(), ignored);
    fs::path temporary = path;
    temporary += "." + std::to_string(getpid()) + "." + std::to_string(++count);
    if (write_file(temporary, object)) fs::rename(temporary, path, ignored);
    fs::remove(temporary, ignored);
}

}  // namespace

bool Sources::names_are_safe() const {
    auto safe = [](const File& file) {
        return !file.name.empty() && file.name[0] != '.' && file.name[0] != '-' &&
               file.name.find('/') == std::string::npos;
    };
    for (const File& header : headers) {
        if (!safe(header)) return false;
    }
    return safe(program);
}

Compiled compile(const Sources& sources, const std::vector<std::string>& flags) {
    std::vector<std::string> args = arguments(flags);
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
    result.ok = run(args, log);
    result.log = read_file(log);
    if (result.ok) result.object = read_file(object);
    if (result.ok && !entry.empty()) store(entry, result.object);
    return result;
}

}  // namespace skc_shim
