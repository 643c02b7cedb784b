#include "statistics.hpp"

#include <unistd.h>

#include <cstdio>
#include <mutex>
#include <set>

#include "warp.hpp"

namespace ptx {
namespace {

struct Statistics {
    std::mutex mutex;
    std::vector<std::shared_ptr<Module>> modules;

    // A line for each kernel that ran; summary.py adds them up. The last fields are lines of the sources: those of
    // which an instruction ran, and the others.
    ~Statistics() {
        const std::string& out = Options::get().out;
        if (out.empty()) return;
        std::lock_guard lock(mutex);
        FILE* file = std::fopen((out + "/" + std::to_string(getpid()) + ".stats").c_str(), "w");
        if (!file) return;
        for (const auto& module : modules) {
            for (const auto& [name, kernel] : module->kernels) {
                if (kernel->launches == 0) continue;
                std::fprintf(file, "%s\t%s\t%llu\t%llu\t%llu\t", kernel->label.c_str(), name.c_str(),
                             static_cast<unsigned long long>(kernel->launches),
                             static_cast<unsigned long long>(kernel->warp_instructions),
                             static_cast<unsigned long long>(kernel->lane_instructions));
                std::set<std::string> ran, others;
                for (const Instruction& i : kernel->code) {
                    auto name = module->files.find(i.file);
                    if (name == module->files.end()) continue;
                    (i.hits ? ran : others).insert(name->second + ":" + std::to_string(i.file_line));
                }
                for (const std::string& line : ran) std::fprintf(file, "%s ", line.c_str());
                std::fputc('\t', file);
                for (const std::string& line : others) {
                    if (!ran.count(line)) std::fprintf(file, "%s ", line.c_str());
                }
                std::fputc('\n', file);
            }
        }
        std::fclose(file);
    }
};

}  // namespace

void count(const std::shared_ptr<Module>& module) {
    static Statistics statistics;
    std::lock_guard lock(statistics.mutex);
    statistics.modules.push_back(module);
}

}  // namespace ptx
