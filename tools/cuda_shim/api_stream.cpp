// The driver API: streams.

#include <algorithm>

#include "driver.hpp"

using namespace skc_shim;

namespace {

CUresult new_stream(CUstream* out, unsigned flags) {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (!out || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    auto& streams = call.context->streams;
    // A destroyed stream is kept until its work has completed: the legacy stream waits for that work.
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
    if (CUresult error = reject_if_stream_captures(*stream)) return error;
    if (stream->legacy) {
        if (CUresult error = enqueue(call, *stream, nullptr)) return error;
    }
    return query(call, OpRef(stream->last));
}

SKC_SHIM_API CUresult cuStreamGetCtx(CUstream handle, CUcontext* out) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = thread_state().stack.back();
    return CUDA_SUCCESS;
}

// Calls a host function in stream order; in capture it becomes a node of the graph.
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
