// The state of the stand-in driver: devices, contexts, streams, events, modules, graphs, memory. One mutex guards it.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "code.hpp"
#include "cuda_api.hpp"
#include "queue.hpp"

namespace skc_shim {

// A node of a graph, or of a stream in capture.
struct Node {
    Work work;
    std::vector<size_t> dependencies;  // indices of nodes
};

struct Graph {
    Context* context = nullptr;
    std::vector<Node> nodes;
    OpRef last;  // of an executable graph: its launches run one after the other
};

struct Stream;

struct Capture {
    std::shared_ptr<Graph> graph = std::make_shared<Graph>();
    CUstreamCaptureMode mode = CU_CAPTURE_GLOBAL;
    std::thread::id thread;
    Stream* origin = nullptr;
    std::vector<Stream*> streams;  // in this capture, the origin included
    bool invalid = false;
    bool ended = false;
};

struct Stream {
    Context* context = nullptr;
    bool blocking = true;  // synchronizes with the legacy stream
    bool legacy = false;
    bool destroyed = false;  // its pending work still runs
    OpRef last;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> tails;  // nodes that the next captured node depends on
};

struct Event {
    Context* context = nullptr;
    OpRef op;
    std::shared_ptr<double> milliseconds;  // time at which it completed
    std::shared_ptr<Capture> capture;      // in which it was recorded
    std::vector<size_t> tails;
};

struct Module {
    Context* context = nullptr;
    std::shared_ptr<Code> code;
    uint32_t arch = 0;
    bool loaded = true;
};

struct Function {
    std::shared_ptr<Module> module;
    std::string name;
    std::shared_ptr<Kernel> kernel;
    uint32_t max_shared = 48 * 1024;
};

struct Allocation {
    size_t bytes = 0;
    Context* context = nullptr;
    bool device = true;  // otherwise pinned host memory
    bool mapped = false;
};

struct Context {
    CUdevice device = 0;
    bool alive = true;
    uint32_t retained = 0;  // reference count of a primary context
    bool primary = false;
    CUresult failed = CUDA_SUCCESS;  // sticky
    size_t pending = 0;              // operations of the queue
    Stream legacy;
    std::vector<std::shared_ptr<Stream>> streams;

    void fail(const std::string& why);
};

// Objects by handle. Handles are never reused, so that the handle of a destroyed object is recognised as invalid.
template <class T>
class Table {
public:
    explicit Table(uintptr_t base) : next_(base) {}
    uintptr_t add(std::shared_ptr<T> object) {
        next_ += 16;
        objects_[next_] = std::move(object);
        return next_;
    }
    std::shared_ptr<T> find(const void* handle) const {
        auto it = objects_.find(reinterpret_cast<uintptr_t>(handle));
        return it == objects_.end() ? nullptr : it->second;
    }
    bool remove(const void* handle) { return objects_.erase(reinterpret_cast<uintptr_t>(handle)) != 0; }
    template <class F>
    void remove_if(F condition) {
        for (auto it = objects_.begin(); it != objects_.end();) {
            it = condition(*it->second) ? objects_.erase(it) : std::next(it);
        }
    }

private:
    std::unordered_map<uintptr_t, std::shared_ptr<T>> objects_;
    uintptr_t next_;
};

struct Settings {
    int devices, arch, multiprocessors, shared_optin;
    size_t memory;
    Settings();
};

struct Driver {
    Driver();

    std::mutex mutex;
    const Settings settings;
    bool initialised = false;
    Queue queue;
    Table<Context> contexts{0x5ca10000000};
    Table<Stream> streams{0x5ca20000000};
    Table<Event> events{0x5ca30000000};
    Table<Module> modules{0x5ca40000000};
    Table<Function> functions{0x5ca50000000};
    Table<Graph> graphs{0x5ca60000000};
    Table<Graph> graph_execs{0x5ca70000000};
    std::vector<std::pair<CUcontext, std::shared_ptr<Context>>> primary;  // by device
    std::vector<std::shared_ptr<Context>> destroyed;                      // kept: pending work may point to them
    std::vector<std::shared_ptr<Capture>> captures;                       // that have begun and not ended
    std::map<uintptr_t, Allocation> memory;
    size_t memory_used = 0;

    // Counters for tests.
    std::atomic<uint64_t> n_sync{0}, n_allocations{0}, n_launches{0}, n_programmatic{0}, n_clustered{0};
    std::atomic<uint64_t> n_graph_launches{0};
    std::atomic<int64_t> fail_after{0};  // counts allocations down to the one that fails; 0 = none
    std::atomic<int> max_cluster{8};       // blocks; 0 = no clusters
    std::atomic<uint64_t> seeds{0};      // used so far, one by each launch
};

// Never destroyed: threads may call it while the process exits.
Driver& driver();

// A call's lock on the driver, and its current context.
struct Call {
    Driver& d;
    std::unique_lock<std::mutex> lock;
    std::shared_ptr<Context> context;

    Call() : d(driver()), lock(d.mutex) {}
    CUresult check_initialised() const;
    // The same, and that there is such a device.
    CUresult check_device(CUdevice device) const;
    // An error unless the driver is initialised and the current context is alive and has not failed.
    CUresult enter();
    // The same, and finds a stream of that context.
    CUresult enter(CUstream handle, Stream*& stream);
};

struct ThreadState {
    std::vector<CUcontext> stack;
    CUstreamCaptureMode mode = CU_CAPTURE_GLOBAL;
};
ThreadState& thread_state();

// ---- capture.cpp

// Rejects a call that is unsafe while a stream is in capture, and invalidates the capture, as the driver does.
CUresult reject_in_capture(Call& call);
// The same for calls that wait for, or query, all of a context or one stream.
CUresult reject_if_context_captures(Call& call);
CUresult reject_if_stream_captures(Stream& stream);
// Whether a blocking stream of the context is in capture: then its legacy stream may not be used.
bool blocks_legacy(const Driver& d, const Context& context);
void invalidate(Capture& capture);
// Takes its streams out of the capture.
void end_capture(Driver& d, const std::shared_ptr<Capture>& capture);

// ---- stream.cpp

// Adds work to a stream, or to the graph that is captured from it. It also depends on `dependency`, if one is given.
CUresult enqueue(Call& call, Stream& stream, Work work, const OpRef& dependency = nullptr);
// Waits for all work of a stream.
CUresult wait_for(Call& call, Stream& stream);
// Whether an operation has completed: CUDA_SUCCESS or CUDA_ERROR_NOT_READY.
CUresult query(Call& call, const OpRef& op);
// The error of the context, which stays once it has failed. To be returned after a wait.
CUresult sticky_error(const Call& call);

// ---- memory.cpp

// The allocation that contains the range; NULL if there is none.
const Allocation* find_allocation(const Driver& d, uintptr_t address, size_t bytes);
CUresult allocate(Driver& d, const Allocation& allocation, void** out);
void release(Driver& d, std::map<uintptr_t, Allocation>::iterator it);

void end_context(Driver& d, Context& context);

}  // namespace skc_shim
