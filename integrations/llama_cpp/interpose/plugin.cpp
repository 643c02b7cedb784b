// GGML_BACKEND_PATH as a way in, for programs whose start one cannot change: ggml loads this library as a backend.
#include "host.hpp"
#include "log.hpp"

#include "one_line.hpp"

#include <ggml-backend.h>

#include <dlfcn.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace sinkcache {
namespace interpose {
namespace {

/** The arguments that the process was started with. */
std::vector<std::string> command_line() {
    std::ifstream file("/proc/self/cmdline", std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), {});
    std::vector<std::string> arguments;
    for (std::size_t at = 0; at < all.size(); at += arguments.back().size() + 1) {
        arguments.emplace_back(all.c_str() + at);
    }
    return arguments;
}

// The program has bound llama.cpp's functions already, so it starts anew with this library in front of them.
void start_again(const std::string &file) {
    const char *value = std::getenv("LD_PRELOAD");
    const std::string before = value ? value : "";
    const std::string preloaded = before.empty() ? file : file + ":" + before;
    std::vector<std::string> arguments = command_line();
    std::vector<char *> argv;
    for (std::string &argument : arguments) {
        argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    setenv("LD_PRELOAD", preloaded.c_str(), 1);
    // The new process would load this library as a backend again, which it is not.
    const char *backend = std::getenv("GGML_BACKEND_PATH");
    const std::string backend_path = backend ? backend : "";
    unsetenv("GGML_BACKEND_PATH");
    log(LogLevel::INFO, "starting " + (arguments.empty() ? "the program" : arguments[0]) + " again, with LD_PRELOAD");
    execv("/proc/self/exe", argv.data());
    log(LogLevel::ERRORS, std::string("the program could not be started again: ") + std::strerror(errno));
    value ? setenv("LD_PRELOAD", before.c_str(), 1) : unsetenv("LD_PRELOAD");
    setenv("GGML_BACKEND_PATH", backend_path.c_str(), 1);
}

}  // namespace
}  // namespace interpose
}  // namespace sinkcache

// Returns NULL if it returns: this library is no backend.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    using namespace sinkcache::interpose;
    Dl_info own{};
    if (!dladdr(reinterpret_cast<void *>(&ggml_backend_init), &own) || !own.dli_fname) {
        log(LogLevel::ERRORS, "loaded as a backend: the library's own file is not known");
    } else if (is_preloaded()) {
        log(LogLevel::ERRORS, "the library is in LD_PRELOAD already: GGML_BACKEND_PATH is not needed");
    } else if (!dlsym(RTLD_DEFAULT, "llama_init_from_model")) {
        // Python, for example: a script that is started again would do all it has done until here once more.
        log(LogLevel::ERRORS, "GGML_BACKEND_PATH works for programs that are linked with llama.cpp; this one has "
                              "loaded it while it ran");
    } else if (std::strpbrk(own.dli_fname, " :")) {
        log(LogLevel::ERRORS, "the library's path is " + programs::in_quotes(own.dli_fname) +
                                  ": LD_PRELOAD cannot name a path with a blank or a colon");
    } else {
        start_again(own.dli_fname);
    }
    return nullptr;
}
