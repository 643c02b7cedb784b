#include "grid.hpp"

#include <memory>
#include <mutex>
#include <vector>

#include "scheduler.hpp"

namespace skc_shim {

std::string run_grid(const Launch& launch) {
    // A scheduler keeps its stacks. There are as many as grids have run at the same time.
    static std::mutex mutex;
    static std::vector<std::unique_ptr<Scheduler>> idle;
    std::unique_ptr<Scheduler> scheduler;
    {
        std::lock_guard lock(mutex);
        if (!idle.empty()) {
            scheduler = std::move(idle.back());
            idle.pop_back();
        }
    }
    if (!scheduler) scheduler = std::make_unique<Scheduler>();
    std::string error = scheduler->run(launch);
    std::lock_guard lock(mutex);
    idle.push_back(std::move(scheduler));
    return error;
}

}  // namespace skc_shim
