// Streams: enqueueing work, and waiting for it.

#include "driver.hpp"

namespace skc_shim {

CUresult enqueue(Call& call, Stream& stream, Work work, const OpRef& dependency) {
    if (stream.capture) {
        if (stream.capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        auto& nodes = stream.capture->graph->nodes;
        nodes.push_back({std::move(work), stream.tails});
        stream.tails = {nodes.size() - 1};
        return CUDA_SUCCESS;
    }
    Context& context = *call.context;
    std::vector<OpRef> dependencies{stream.last, dependency};
    if (stream.legacy) {
        if (blocks_legacy(call.d, context)) {
            reject_if_context_captures(call);
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        for (const auto& other : context.streams) {
            if (other->blocking) dependencies.push_back(other->last);
        }
    } else if (stream.blocking) {
        dependencies.push_back(context.legacy.last);
    }
    stream.last = call.d.queue.submit(&context, std::move(work), dependencies);
    call.d.queue.limit_pending(call.lock);
    return CUDA_SUCCESS;
}

CUresult wait_for(Call& call, Stream& stream) {
    if (CUresult error = reject_if_stream_captures(stream)) return error;
    // The legacy stream waits for all blocking ones: empty work in it depends on their last operations.
    if (stream.legacy) {
        if (CUresult error = enqueue(call, stream, nullptr)) return error;
    }
    ++call.d.n_sync;
    call.d.queue.wait(call.lock, OpRef(stream.last));
    return sticky_error(call);
}

CUresult query(Call& call, const OpRef& op) {
    call.d.queue.maybe_advance(call.lock);
    if (CUresult error = sticky_error(call)) return error;
    return !op || op->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult sticky_error(const Call& call) { return call.context->failed; }

}  // namespace skc_shim
