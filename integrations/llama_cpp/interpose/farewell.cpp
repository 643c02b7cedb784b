// A word at the end of a process that the library was preloaded into in vain.
#include "host.hpp"
#include "log.hpp"
#include "registry.hpp"
#include "settings.hpp"

#include <exception>

using namespace sinkcache::interpose;

// Programs that open llama.cpp themselves, such as Python over ctypes, look its functions up in that file. They do not
// reach this library, and would not notice; llama.cpp's own calls do, which changes nothing.
__attribute__((destructor)) static void farewell() {
    try {
        const std::string file = registry().context_asked_for() ? std::string() : private_llama();
        if (!file.empty()) {
            set_log_level(read_settings().log);
            log(LogLevel::ERRORS, "preloading had no effect: this process has opened " + file +
                                      " by itself. In Python call sinkcache_llama.install(); elsewhere open the shim "
                                      "libllama.so in its place");
        }
    } catch (const std::exception &e) {
        log(LogLevel::ERRORS, e.what());
    }
}
