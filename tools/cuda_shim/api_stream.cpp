// The driver API: streams, events, capture, graphs.

#include <algorithm>
#include <chrono>
#include <set>

#include "driver.hpp"

using namespace skc_shim;

namespace {

double now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

CUresult new_stream(CUstream* out, unsigned flags) {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (!out || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    auto& streams = call.context->streams;
    // Destroyed streams are kept until their work is done: the legacy stream comes after it.
    streams.erase(std::remove_if(streams.begin(), streams.end(),
                                 [](const auto& s) { return s->destroyed && (!s->last || s->last->done); }),
                  streams.end());
    auto stream = std::make_shared<Stream>();
    stream->context = call.context.get();
    stream->blocking = flags != CU_STREAM_NON_BLOCKING;
    streams.push_back(stream);
    *out = reinterpret_cast<CUstream>(call.d.streams.add(stream));
    return CUDA_SUCCESS;
}

void end_capture(Driver& d, const std::shared_ptr<Capture>& capture) {
    capture->ended = true;
    for (Stream* stream : capture->streams) {
        stream->capture = nullptr;
        stream->tails.clear();
    }
    d.captures.erase(std::remove(d.captures.begin(), d.captures.end(), capture), d.captures.end());
}

// Whether everything captured comes before, or is, one of the origin's last nodes.
bool is_joined(const Capture& capture) {
    std::set<size_t> reached(capture.origin->tails.begin(), capture.origin->tails.end());
    for (size_t i = capture.graph->nodes.size(); i-- > 0;) {
        if (reached.count(i)) reached.insert(capture.graph->nodes[i].after.begin(), capture.graph->nodes[i].after.end());
    }
    return reached.size() == capture.graph->nodes.size();
}

void join_capture(Stream& stream, const Event& event) {
    if (!stream.capture) {
        stream.capture = event.capture;
        stream.capture->streams.push_back(&stream);
    }
    for (size_t tail : event.tails) {
        if (std::find(stream.tails.begin(), stream.tails.end(), tail) == stream.tails.end()) stream.tails.push_back(tail);
    }
}

}  // namespace

SKC_SHIM_API CUresult cuStreamCreate(CUstream* out, unsigned flags) { return new_stream(out, flags); }
SKC_SHIM_API CUresult cuStreamCreateWithPriority(CUstream* out, unsigned flags, int) { return new_stream(out, flags); }

SKC_SHIM_API CUresult cuStreamDestroy_v2(CUstream handle) {
    Call call;
    auto stream = call.d.streams.find(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) {
        auto capture = stream->capture;
        end_capture(call.d, capture);
    }
    stream->destroyed = true;
    call.d.streams.remove(handle);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuStreamSynchronize(CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    return wait_for(call, *stream);
}

SKC_SHIM_API CUresult cuStreamQuery(CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (CUresult error = refuse_if_stream_captures(*stream)) return error;
    if (stream->legacy) {
        if (CUresult error = enqueue(call, *stream, nullptr)) return error;
    }
    OpRef last = stream->last;
    call.d.queue.maybe_advance(call.lock);
    if (CUresult error = outcome(call)) return error;
    return !last || last->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

SKC_SHIM_API CUresult cuStreamGetCtx(CUstream handle, CUcontext* out) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = thread_state().stack.back();
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* out) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (stream->legacy && blocks_legacy(call.d, *call.context)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    *out = !stream->capture ? CU_CAPTURE_NONE : stream->capture->invalid ? CU_CAPTURE_INVALIDATED : CU_CAPTURE_ACTIVE;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    if (!mode || *mode < CU_CAPTURE_GLOBAL || *mode > CU_CAPTURE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, thread_state().mode);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (mode < CU_CAPTURE_GLOBAL || mode > CU_CAPTURE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    auto capture = std::make_shared<Capture>();
    capture->graph->context = call.context.get();
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = stream;
    capture->streams = {stream};
    stream->capture = capture;
    call.d.captures.push_back(capture);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = nullptr;
    auto capture = stream->capture;
    if (!capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (capture->origin != stream) {
        spoil(*capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    if (capture->mode != CU_CAPTURE_RELAXED && capture->thread != std::this_thread::get_id()) {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    bool joined = is_joined(*capture);
    end_capture(call.d, capture);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!joined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    *out = reinterpret_cast<CUgraph>(call.d.graphs.add(capture->graph));
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph handle, unsigned long long flags) {
    Call call;
    auto graph = call.d.graphs.find(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    if (!out || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    *out = reinterpret_cast<CUgraphExec>(call.d.graph_execs.add(std::make_shared<Graph>(*graph)));
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(stream_handle, stream)) return error;
    auto graph = call.d.graph_execs.find(handle);
    if (!graph || graph->context != call.context.get()) return CUDA_ERROR_INVALID_HANDLE;
    ++call.d.n_graph_launches;
    if (stream->capture) {
        return enqueue(call, *stream, [graph]() -> std::string {
            for (const Node& node : graph->nodes) {
                std::string error = node.work ? node.work() : std::string();
                if (!error.empty()) return error;
            }
            return {};
        });
    }
    // An empty piece of work that comes after all the stream holds, the nodes after it, and one that comes after them.
    if (CUresult error = enqueue(call, *stream, nullptr, graph->last)) return error;
    OpRef begin = stream->last;
    std::vector<OpRef> ops;
    for (const Node& node : graph->nodes) {
        std::vector<OpRef> after{begin};
        for (size_t before : node.after) after.push_back(ops[before]);
        ops.push_back(call.d.queue.submit(call.context.get(), node.work, after));
    }
    ops.push_back(begin);
    stream->last = graph->last = call.d.queue.submit(call.context.get(), nullptr, ops);
    return CUDA_SUCCESS;
}

// A function of the host in its place in a stream; a node of a graph in capture.
SKC_SHIM_API CUresult cuLaunchHostFunc(CUstream stream_handle, void (*function)(void*), void* user) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(stream_handle, stream)) return error;
    if (!function) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(call, *stream, [=]() -> std::string {
        function(user);
        return {};
    });
}

// How many pieces of work a graph holds; which they are is not told.
SKC_SHIM_API CUresult cuGraphGetNodes(CUgraph handle, void* nodes, size_t* count) {
    Call call;
    auto graph = call.d.graphs.find(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    if (nodes) return CUDA_ERROR_NOT_SUPPORTED;
    *count = static_cast<size_t>(std::count_if(graph->nodes.begin(), graph->nodes.end(), [](const Node& n) { return !!n.work; }));
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuGraphDestroy(CUgraph handle) {
    Call call;
    return call.d.graphs.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SKC_SHIM_API CUresult cuGraphExecDestroy(CUgraphExec handle) {
    Call call;
    return call.d.graph_execs.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SKC_SHIM_API CUresult cuEventCreate(CUevent* out, unsigned) {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    auto event = std::make_shared<Event>();
    event->context = call.context.get();
    *out = reinterpret_cast<CUevent>(call.d.events.add(event));
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuEventDestroy_v2(CUevent handle) {
    Call call;
    return call.d.events.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SKC_SHIM_API CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(stream_handle, stream)) return error;
    auto event = call.d.events.find(handle);
    if (!event || event->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) {
        if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        event->capture = stream->capture;
        event->tails = stream->tails;
        event->op = nullptr;
        return CUDA_SUCCESS;
    }
    auto time = std::make_shared<double>(0);
    Work work = [time]() -> std::string {
        *time = now();
        return {};
    };
    if (CUresult error = enqueue(call, *stream, std::move(work))) return error;
    event->op = stream->last;
    event->milliseconds = time;
    event->capture = nullptr;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(stream_handle, stream)) return error;
    auto event = call.d.events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) {
        if (event->capture->ended) return CUDA_ERROR_CAPTURED_EVENT;
        if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        if (stream->capture && stream->capture != event->capture) {
            spoil(*stream->capture);
            spoil(*event->capture);
            return CUDA_ERROR_STREAM_CAPTURE_MERGE;
        }
        join_capture(*stream, *event);
        return CUDA_SUCCESS;
    }
    if (stream->capture) {
        if (!event->op) return CUDA_SUCCESS;
        spoil(*stream->capture);
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    return event->op ? enqueue(call, *stream, nullptr, event->op) : CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuEventSynchronize(CUevent handle) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto event = call.d.events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) {
        spoil(*event->capture);
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    ++call.d.n_sync;
    call.d.queue.wait(call.lock, OpRef(event->op));
    return outcome(call);
}

SKC_SHIM_API CUresult cuEventQuery(CUevent handle) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto event = call.d.events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) {
        spoil(*event->capture);
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (CUresult error = refuse_in_capture(call)) return error;
    OpRef op = event->op;
    call.d.queue.maybe_advance(call.lock);
    if (CUresult error = outcome(call)) return error;
    return !op || op->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

// Wall time on the CPU: it says nothing about a GPU.
SKC_SHIM_API CUresult cuEventElapsedTime_v2(float* out, CUevent begin_handle, CUevent end_handle) {
    Call call;
    auto begin = call.d.events.find(begin_handle), end = call.d.events.find(end_handle);
    if (!begin || !end || !begin->op || !end->op) return CUDA_ERROR_INVALID_HANDLE;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!begin->op->done || !end->op->done) return CUDA_ERROR_NOT_READY;
    *out = static_cast<float>(*end->milliseconds - *begin->milliseconds);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuEventElapsedTime(float* out, CUevent begin, CUevent end) { return cuEventElapsedTime_v2(out, begin, end); }
