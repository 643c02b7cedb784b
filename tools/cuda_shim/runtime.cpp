#include "runtime.hpp"

#include <cstdio>

#include "async_copy.hpp"
#include "scheduler.hpp"
#include "warp_ops.hpp"

namespace skc_shim {
namespace {

void wait_for_preceding_kernel(DeviceThread* self) { self->after_wait = true; }

void sync(DeviceThread* self, SyncOp op, int line) {
    require_wait(self, name_of(op));
    self->op = op;
    self->line = line;
    if (const char* reason = arrive(op, *self)) {
        char text[128];
        std::snprintf(text, sizeof text, "%s (line %d)", reason, line);
        self->scheduler->fail(*self, text);
    }
    self->warp->arrived |= lane_bit(*self);
    self->scheduler->suspend(self);
}

void yield(DeviceThread* self) {
    require_wait(self, "an atomic");
    Scheduler& scheduler = *self->scheduler;
    if (scheduler.random.next() % 4 != 0) return;
    self->warp->yielded |= lane_bit(*self);
    self->warp->priority = scheduler.random.next();
    scheduler.suspend(self);
}

void fail(DeviceThread* self, const char* reason) { self->scheduler->fail(*self, reason); }

void copy_async(DeviceThread* self, void* shared, const void* global, uint32_t bytes, bool valid) {
    require_wait(self, "copy_async");
    auto to = reinterpret_cast<uintptr_t>(shared);
    auto begin = reinterpret_cast<uintptr_t>(self->shared);
    if (to % bytes != 0) fail(self, "copy_async: the destination is not aligned to the bytes that are copied");
    if (reinterpret_cast<uintptr_t>(global) % bytes != 0) {
        fail(self, "copy_async: the source is not aligned to the bytes that are copied");
    }
    if (to < begin || to + bytes > begin + self->shared_bytes) {
        fail(self, "copy_async: the destination lies outside shared memory");
    }
    bool early = self->scheduler->random.next() % 2 != 0;
    self->copies->issue(static_cast<uint8_t*>(shared), static_cast<const uint8_t*>(global), bytes, valid, early);
}

void copy_async_commit(DeviceThread* self) { self->copies->commit(); }
void copy_async_wait(DeviceThread* self, uint32_t pending) { self->copies->wait(pending); }

const void* cluster_memory(DeviceThread* self, uint32_t rank, uint32_t offset, uint32_t bytes) {
    require_wait(self, "a load from another block's shared memory");
    return self->scheduler->cluster_memory(*self, rank, offset, bytes);
}

}  // namespace

const Runtime kRuntime = {sync,           yield,          copy_async, copy_async_commit, copy_async_wait,
                          cluster_memory, wait_for_preceding_kernel, fail};

void require_wait(DeviceThread* self, const char* what) {
    if (self->after_wait) return;
    char text[128];
    std::snprintf(text, sizeof text, "%s before begin_kernel, in a programmatic launch", what);
    fail(self, text);
}

}  // namespace skc_shim
