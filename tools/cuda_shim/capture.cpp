// Which calls are rejected while a stream is captured into a graph.
//
// Source: CUDA driver API of 13.0, cuStreamBeginCapture and cuThreadExchangeStreamCaptureMode; CUDA programming guide,
// "Prohibited and unhandled operations" under stream capture.

#include <algorithm>

#include "driver.hpp"

namespace skc_shim {

void invalidate(Capture& capture) { capture.invalid = true; }

CUresult reject_in_capture(Call& call) {
    CUstreamCaptureMode mode = thread_state().mode;
    if (mode == CU_CAPTURE_RELAXED) return CUDA_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    for (const auto& capture : call.d.captures) {
        bool own = capture->thread == std::this_thread::get_id() && capture->mode != CU_CAPTURE_RELAXED;
        bool others = mode == CU_CAPTURE_GLOBAL && capture->mode == CU_CAPTURE_GLOBAL;
        if (!own && !others) continue;
        invalidate(*capture);
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return result;
}

CUresult reject_if_context_captures(Call& call) {
    CUresult result = CUDA_SUCCESS;
    for (const auto& capture : call.d.captures) {
        if (capture->graph->context != call.context.get()) continue;
        invalidate(*capture);
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return result;
}

CUresult reject_if_stream_captures(Stream& stream) {
    if (!stream.capture) return CUDA_SUCCESS;
    invalidate(*stream.capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

bool blocks_legacy(const Driver& d, const Context& context) {
    return std::any_of(d.captures.begin(), d.captures.end(), [&](const auto& capture) {
        return std::any_of(capture->streams.begin(), capture->streams.end(),
                           [&](const Stream* stream) { return stream->context == &context && stream->blocking; });
    });
}

void end_capture(Driver& d, const std::shared_ptr<Capture>& capture) {
    capture->ended = true;
    for (Stream* stream : capture->streams) {
        stream->capture = nullptr;
        stream->tails.clear();
    }
    d.captures.erase(std::remove(d.captures.begin(), d.captures.end(), capture), d.captures.end());
}

}  // namespace skc_shim
