#include "host.hpp"

#include "layout.hpp"
#include "one_line.hpp"

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace sinkcache {
namespace interpose {
namespace {

constexpr char MARK[] = "llama_init_from_model";

/** The file that an address lies in; empty if unknown. */
std::string file_of(const void *address) {
    Dl_info info{};
    return dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}

const std::string &own_file() {
    // Never destroyed: it is asked for at the very end of the process.
    static const std::string &file = *new std::string(file_of(reinterpret_cast<const void *>(&own_file)));
    return file;
}

/** The file, among those loaded, that defines llama.cpp's functions; empty if there is none but this library. */
std::string loaded_llama() {
    std::vector<std::string> files;
    dl_iterate_phdr(
        [](dl_phdr_info *object, std::size_t, void *all) {
            if (object->dlpi_name && *object->dlpi_name) {
                static_cast<std::vector<std::string> *>(all)->emplace_back(object->dlpi_name);
            }
            return 0;
        },
        &files);
    for (const std::string &file : files) {
        void *library = dlopen(file.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (!library) {
            continue;
        }
        const void *found = dlsym(library, MARK);
        // A library that depends on llama.cpp finds its functions, too.
        const std::string defined_in = found ? file_of(found) : "";
        dlclose(library);
        if (!defined_in.empty() && defined_in != own_file()) {
            return defined_in;
        }
    }
    return {};
}

/** Where llama.cpp is: what the user names, what comes after this library, or what a host has loaded for itself. */
std::string find_library() {
    if (const char *named = std::getenv("SINKCACHE_LLAMA_LIB")) {
        if (*named) {
            return named;
        }
    }
    if (const void *next = dlsym(RTLD_NEXT, MARK)) {
        return file_of(next);
    }
    return loaded_llama();
}

// Before there is a host there is nobody to return an error to.
[[noreturn]] void give_up(const std::string &text) {
    std::fprintf(stderr, "sinkcache: %s\n", text.c_str());
    std::abort();
}

Host find_host() {
    Host host;
    host.library = find_library();
    // It stays loaded: the table has its addresses.
    void *library = host.library.empty() ? nullptr : dlopen(host.library.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (host.library.empty()) {
        give_up("a function of llama.cpp was called, and there is no llama.cpp in this process");
    }
    if (!library || !dlsym(library, MARK) || file_of(dlsym(library, MARK)) == own_file()) {
        const char *reason = library ? nullptr : dlerror();
        give_up("SINKCACHE_LLAMA_LIB is " + programs::in_quotes(host.library) +
                ": it must name llama.cpp's libllama" + (reason ? std::string(": ") + reason : ""));
    }
    std::string missing;
    const auto look_up = [&](const char *name) {
        void *found = dlsym(library, name);
        if (!found) {
            missing += (missing.empty() ? "" : ", ") + std::string(name);
        }
        return found;
    };
#define SINKCACHE_CALL(name) host.calls.name = reinterpret_cast<decltype(&::name)>(look_up(#name));
    SINKCACHE_STREAM_CALLS(SINKCACHE_CALL)
    SINKCACHE_INTERPOSED_CALLS(SINKCACHE_CALL)
#undef SINKCACHE_CALL
    host.problem = missing.empty() ? layout_problem(host.calls) : "it has no " + missing;
    return host;
}

}  // namespace

const Host &host() {
    // Never destroyed: hosts call llama.cpp while the process ends.
    static const Host &found = *new Host(find_host());
    return found;
}

bool is_preloaded() {
    const std::string &own = own_file();
    const char *preload = std::getenv("LD_PRELOAD");
    return preload && std::strstr(preload, own.c_str() + own.rfind('/') + 1);
}

std::string private_llama() {
    // The program's scope: RTLD_DEFAULT would also find this library where it was opened for its C API alone.
    void *program = dlopen(nullptr, RTLD_LAZY);
    const void *global = program ? dlsym(program, MARK) : nullptr;
    const bool preloaded = global && file_of(global) == own_file();
    return preloaded && !dlsym(RTLD_NEXT, MARK) ? loaded_llama() : std::string();
}

}  // namespace interpose

namespace llama_cpp {

const LlamaApi &api() { return interpose::real(); }

const std::string &api_problem() { return interpose::host().problem; }

}  // namespace llama_cpp
}  // namespace sinkcache
