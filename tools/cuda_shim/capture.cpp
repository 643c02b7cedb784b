// Streams: what goes into them, and what may not happen while one is being captured into a graph.
//
// Source: CUDA driver API of 13.0, cuStreamBeginCapture and cuThreadExchangeStreamCaptureMode; CUDA programming guide,
// "Prohibited and unhandled operations" under stream capture.

#include <algorithm>

#include "driver.hpp"

namespace skc_shim {

void spoil(Capture& capture) { capture.invalid = true; }

CUresult refuse_in_capture(Call& call) {
    CUstreamCaptureMode mode = thread_state().mode;
    if (mode == CU_CAPTURE_RELAXED) return CUDA_SUCCESS;
    CUresult answer = CUDA_SUCCESS;
    for (const auto& capture : call.d.captures) {
        bool own = capture->thread == std::this_thread::get_id() && capture->mode != CU_CAPTURE_RELAXED;
        bool others = mode == CU_CAPTURE_GLOBAL && capture->mode == CU_CAPTURE_GLOBAL;
        if (!own && !others) continue;
        spoil(*capture);
        answer = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return answer;
}

CUresult refuse_if_context_captures(Call& call) {
    CUresult answer = CUDA_SUCCESS;
    for (const auto& capture : call.d.captures) {
        if (capture->graph->context != call.context.get()) continue;
        spoil(*capture);
        answer = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return answer;
}

CUresult refuse_if_stream_captures(Stream& stream) {
    if (!stream.capture) return CUDA_SUCCESS;
    spoil(*stream.capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

bool blocks_legacy(const Driver& d, const Context& context) {
    return std::any_of(d.captures.begin(), d.captures.end(), [&](const auto& capture) {
        return std::any_of(capture->streams.begin(), capture->streams.end(),
                           [&](const Stream* stream) { return stream->context == &context && stream->blocking; });
    });
}

CUresult enqueue(Call& call, Stream& stream, Work work, const OpRef& also) {
    if (stream.capture) {
        if (stream.capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        auto& nodes = stream.capture->graph->nodes;
        nodes.push_back({std::move(work), stream.tails});
        stream.tails = {nodes.size() - 1};
        return CUDA_SUCCESS;
    }
    Context& context = *call.context;
    std::vector<OpRef> after{stream.last, also};
    if (stream.legacy) {
        if (blocks_legacy(call.d, context)) {
            refuse_if_context_captures(call);
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        for (const auto& other : context.streams) {
            if (other->blocking) after.push_back(other->last);
        }
    } else if (stream.blocking) {
        after.push_back(context.legacy.last);
    }
    stream.last = call.d.queue.submit(&context, std::move(work), after);
    call.d.queue.relieve(call.lock);
    return CUDA_SUCCESS;
}

CUresult wait_for(Call& call, Stream& stream) {
    if (CUresult error = refuse_if_stream_captures(stream)) return error;
    // The legacy stream comes after all blocking ones: an empty piece of work finds their ends.
    if (stream.legacy) {
        if (CUresult error = enqueue(call, stream, nullptr)) return error;
    }
    ++call.d.n_sync;
    call.d.queue.wait(call.lock, OpRef(stream.last));
    return outcome(call);
}

}  // namespace skc_shim
