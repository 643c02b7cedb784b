// The driver API: events.

#include <algorithm>
#include <chrono>

#include "driver.hpp"

using namespace skc_shim;

namespace {

double now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Puts the stream into the event's capture, after the nodes that the event was recorded after.
void join_capture(Stream& stream, const Event& event) {
    if (!stream.capture) {
        stream.capture = event.capture;
        stream.capture->streams.push_back(&stream);
    }
    for (size_t tail : event.tails) {
        if (std::find(stream.tails.begin(), stream.tails.end(), tail) == stream.tails.end()) {
            stream.tails.push_back(tail);
        }
    }
}

// Finds an event to wait for or to query. One that was recorded in a capture is an error, and invalidates the capture.
CUresult find_not_captured(Call& call, CUevent handle, std::shared_ptr<Event>& event) {
    if (CUresult error = call.enter()) return error;
    event = call.d.events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (!event->capture) return CUDA_SUCCESS;
    invalidate(*event->capture);
    return CUDA_ERROR_CAPTURED_EVENT;
}

}  // namespace

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
            invalidate(*stream->capture);
            invalidate(*event->capture);
            return CUDA_ERROR_STREAM_CAPTURE_MERGE;
        }
        join_capture(*stream, *event);
        return CUDA_SUCCESS;
    }
    if (stream->capture) {
        if (!event->op) return CUDA_SUCCESS;
        invalidate(*stream->capture);
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    return event->op ? enqueue(call, *stream, nullptr, event->op) : CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuEventSynchronize(CUevent handle) {
    Call call;
    std::shared_ptr<Event> event;
    if (CUresult error = find_not_captured(call, handle, event)) return error;
    ++call.d.n_sync;
    call.d.queue.wait(call.lock, OpRef(event->op));
    return sticky_error(call);
}

SKC_SHIM_API CUresult cuEventQuery(CUevent handle) {
    Call call;
    std::shared_ptr<Event> event;
    if (CUresult error = find_not_captured(call, handle, event)) return error;
    if (CUresult error = reject_in_capture(call)) return error;
    return query(call, OpRef(event->op));
}

// Wall time on the CPU, which is unrelated to that of a GPU.
SKC_SHIM_API CUresult cuEventElapsedTime_v2(float* out, CUevent begin_handle, CUevent end_handle) {
    Call call;
    auto begin = call.d.events.find(begin_handle), end = call.d.events.find(end_handle);
    if (!begin || !end || !begin->op || !end->op) return CUDA_ERROR_INVALID_HANDLE;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!begin->op->done || !end->op->done) return CUDA_ERROR_NOT_READY;
    *out = static_cast<float>(*end->milliseconds - *begin->milliseconds);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuEventElapsedTime(float* out, CUevent begin, CUevent end) {
    return cuEventElapsedTime_v2(out, begin, end);
}
