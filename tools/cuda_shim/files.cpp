#include "files.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

extern char** environ;

namespace fs = std::filesystem;

namespace skc_shim {

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

Scratch::Scratch() {
    std::string name = (fs::temp_directory_path() / "skc_shim_XXXXXX").string();
    if (mkdtemp(name.data())) path_ = name;
}

Scratch::~Scratch() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
}

bool run_program(const std::vector<std::string>& args, const fs::path& log) {
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

void store(const fs::path& path, const std::string& text) {
    static std::atomic<unsigned> count{0};
    std::error_code ignored;
    fs::create_directories(path.parent_path(), ignored);
    fs::path temporary = path;
    temporary += "." + std::to_string(getpid()) + "." + std::to_string(++count);
    if (write_file(temporary, text)) fs::rename(temporary, path, ignored);
    fs::remove(temporary, ignored);
}

}  // namespace skc_shim
