// The driver API: graphs.

#include <algorithm>

#include "driver.hpp"

using namespace skc_shim;

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
    // Empty work that depends on the stream's work; the nodes, after it; empty work that depends on all of them.
    if (CUresult error = enqueue(call, *stream, nullptr, graph->last)) return error;
    OpRef begin = stream->last;
    std::vector<OpRef> ops;
    for (const Node& node : graph->nodes) {
        std::vector<OpRef> dependencies{begin};
        for (size_t i : node.dependencies) dependencies.push_back(ops[i]);
        ops.push_back(call.d.queue.submit(call.context.get(), node.work, dependencies));
    }
    ops.push_back(begin);
    graph->last = call.d.queue.submit(call.context.get(), nullptr, ops);
    stream->last = graph->last;
    return CUDA_SUCCESS;
}

// Returns the number of nodes with work; the nodes themselves are not available.
SKC_SHIM_API CUresult cuGraphGetNodes(CUgraph handle, void* nodes, size_t* count) {
    Call call;
    auto graph = call.d.graphs.find(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    if (nodes) return CUDA_ERROR_NOT_SUPPORTED;
    *count = static_cast<size_t>(
        std::count_if(graph->nodes.begin(), graph->nodes.end(), [](const Node& n) { return !!n.work; }));
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
