// The state of the fake driver: devices, contexts, streams, events, modules, graphs, memory. One mutex guards all of it.
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

#include "cuda_api.hpp"
#include "queue.hpp"

namespace skc_shim {

// A step of a graph, and of a stream in capture.
struct Node {
    Work work;
    std::vector<size_t> after;
};

struct Graph {
    Context* context = nullptr;
    std::vector<Node> nodes;
    OpRef last;  // of an executable graph: it never runs beside itself
};

struct Stream;

struct Capture {
    std::shared_ptr<Graph> graph = std::make_shared<Graph>();
    CUstreamCaptureMode mode = CU_CAPTURE_GLOBAL;
    std::thread::id thread;
    Stream* origin = nullptr;
    std::vector<Stream*> streams;  // that take part, the origin included
    bool invalid = false;
    bool ended = false;
};

struct Stream {
    Context* context = nullptr;
    bool blocking = true;  // ordered with the legacy stream
    bool legacy = false;
    bool destroyed = false;  // its work goes on
    OpRef last;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> tails;  // nodes that the next captured one comes after
};

struct Event {
    Context* context = nullptr;
    OpRef op;
    std::shared_ptr<double> milliseconds;  // when it happened
    std::shared_ptr<Capture> capture;      // recorded in a capture
    std::vector<size_t> tails;
};

struct Module {
    Context* context = nullptr;
    void* library = nullptr;
    int file = -1;  // open while loaded: AddressSanitizer reads symbols from it
    uint32_t arch = 0;
    bool loaded = true;
    ~Module();
};

struct Function {
    std::shared_ptr<Module> module;
    std::string name;
    void (*kernel)(const void*) = nullptr;
    uint32_t param_bytes = 0;
    uint32_t threads = 0;  // at most, of a block
    uint32_t max_shared = 48 * 1024;
};

struct Allocation {
    size_t bytes = 0;
    Context* context = nullptr;
    bool device = true;  // else pinned host memory
    bool mapped = false;
};

struct Context {
    CUdevice device = 0;
    bool alive = true;
    uint32_t retained = 0;  // a primary context's users
    bool primary = false;
    CUresult failed = CUDA_SUCCESS;  // stays
    size_t pending = 0;              // work
    Stream legacy;
    std::vector<std::shared_ptr<Stream>> streams;

    void fail(const std::string& why);
};

// Objects by handle. Handles are never used twice, and one that is not alive is told from one that is.
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
        for (auto it = objects_.begin(); it != objects_.end();) it = condition(*it->second) ? objects_.erase(it) : std::next(it);
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
    std::vector<std::shared_ptr<Context>> dead;                           // ended contexts: work and handles may point to them
    std::vector<std::shared_ptr<Capture>> captures;                       // going on
    std::map<uintptr_t, Allocation> memory;
    size_t memory_used = 0;

    // What tests may ask.
    std::atomic<uint64_t> n_sync{0}, n_allocations{0}, n_launches{0}, n_programmatic{0}, n_graph_launches{0};
    std::atomic<int64_t> fail_after{0};  // the allocation that is to fail, counted down; 0 = none
    std::atomic<uint64_t> seeds{0};
};

// Lives for ever: threads may call while the process ends.
Driver& driver();

// A call's lock on the driver, and its current context.
struct Call {
    Driver& d;
    std::unique_lock<std::mutex> lock;
    std::shared_ptr<Context> context;

    Call() : d(driver()), lock(d.mutex) {}
    // Initialised, with a live context that has not failed.
    CUresult enter();
    // As above, and finds a stream of that context.
    CUresult enter(CUstream handle, Stream*& stream);
};

struct ThreadState {
    std::vector<CUcontext> stack;
    CUstreamCaptureMode mode = CU_CAPTURE_GLOBAL;
};
ThreadState& thread_state();

// ---- capture.cpp

// Refuses what may not be done while a stream is in capture, and spoils the capture, as the driver does.
CUresult refuse_in_capture(Call& call);
// The same for a wait for, or a question about, all of a context, or one stream.
CUresult refuse_if_context_captures(Call& call);
CUresult refuse_if_stream_captures(Stream& stream);
// Whether a blocking stream of the context is in capture: then its legacy stream may not be used.
bool blocks_legacy(const Driver& d, const Context& context);
void spoil(Capture& capture);

// Puts work into a stream, or into the graph that is being captured from it; after `also`, too, if that is given.
CUresult enqueue(Call& call, Stream& stream, Work work, const OpRef& also = nullptr);
// Waits for all that a stream holds.
CUresult wait_for(Call& call, Stream& stream);
// The sticky error of a context, after a wait.
CUresult outcome(const Call& call);

// ---- memory.cpp

// The allocation that holds `bytes` bytes from `address` on.
const Allocation* find_memory(const Driver& d, uintptr_t address, size_t bytes);
CUresult allocate(Driver& d, Context* context, size_t bytes, bool device, bool mapped, void** out);
void release(Driver& d, std::map<uintptr_t, Allocation>::iterator it);

void end_context(Driver& d, Context& context);

}  // namespace skc_shim
