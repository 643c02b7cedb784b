// The driver API: capture of streams into graphs.

#include <algorithm>
#include <set>

#include "driver.hpp"

using namespace skc_shim;

namespace {

// Whether all captured nodes are ancestors of the origin's last nodes, or among them.
bool is_joined(const Capture& capture) {
    std::set<size_t> reached(capture.origin->tails.begin(), capture.origin->tails.end());
    for (size_t i = capture.graph->nodes.size(); i-- > 0;) {
        const auto& dependencies = capture.graph->nodes[i].dependencies;
        if (reached.count(i)) reached.insert(dependencies.begin(), dependencies.end());
    }
    return reached.size() == capture.graph->nodes.size();
}

}  // namespace

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
        invalidate(*capture);
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
