// ggml's CPU flash attention as a function: f32 queries, K and V in any type of its, one thread pool, one graph that
// every call computes.
#include <cstdint>
#include <cstring>
#include <memory>

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

namespace {

struct Peer {
    ggml_context * ctx = nullptr;
    ggml_backend_t backend = nullptr;
    ggml_backend_buffer_t buffer = nullptr;
    ggml_threadpool * pool = nullptr;
    ggml_cgraph * graph = nullptr;
    ggml_tensor *q = nullptr, *k = nullptr, *v = nullptr, *out = nullptr;

    ~Peer() {
        if (backend) ggml_backend_free(backend);
        if (pool) ggml_threadpool_free(pool);
        if (buffer) ggml_backend_buffer_free(buffer);
        if (ctx) ggml_free(ctx);
    }
};

}  // namespace

extern "C" {

struct ggml_peer_shape {
    int q_heads, kv_heads, dim, cached, queries, threads;
    int k_type, v_type;  // ggml_type
};

// q [queries][q_heads][dim], k and v [kv_heads][cached][dim], all f32. K and V are converted; their layout is that of
// llama.cpp's cache with V not transposed.
void * ggml_peer_new(const ggml_peer_shape * s, const float * q, const float * k, const float * v) {
    auto peer = std::make_unique<Peer>();
    peer->ctx = ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true});
    peer->q = ggml_new_tensor_3d(peer->ctx, GGML_TYPE_F32, s->dim, s->q_heads, s->queries);
    peer->k = ggml_new_tensor_3d(peer->ctx, static_cast<ggml_type>(s->k_type), s->dim, s->cached, s->kv_heads);
    peer->v = ggml_new_tensor_3d(peer->ctx, static_cast<ggml_type>(s->v_type), s->dim, s->cached, s->kv_heads);
    ggml_tensor * rows = ggml_permute(peer->ctx, peer->q, 0, 2, 1, 3);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(s->dim));
    peer->out = ggml_flash_attn_ext(peer->ctx, rows, peer->k, peer->v, nullptr, scale, 0.0f, 0.0f);
    peer->graph = ggml_new_graph(peer->ctx);
    ggml_build_forward_expand(peer->graph, peer->out);
    peer->backend = ggml_backend_cpu_init();
    peer->buffer = ggml_backend_alloc_ctx_tensors(peer->ctx, peer->backend);
    ggml_threadpool_params params = ggml_threadpool_params_default(s->threads);
    peer->pool = ggml_threadpool_new(&params);
    if (!peer->buffer || !peer->pool) return nullptr;
    ggml_backend_cpu_set_n_threads(peer->backend, s->threads);
    ggml_backend_cpu_set_threadpool(peer->backend, peer->pool);
    std::memcpy(peer->q->data, q, ggml_nbytes(peer->q));
    const int64_t kv_rows = static_cast<int64_t>(s->cached) * s->kv_heads;
    ggml_quantize_chunk(peer->k->type, k, peer->k->data, 0, kv_rows, s->dim, nullptr);
    ggml_quantize_chunk(peer->v->type, v, peer->v->data, 0, kv_rows, s->dim, nullptr);
    ggml_threadpool_pause(peer->pool);
    return peer.release();
}

// The pool's threads poll while they wait for work. Paused, they leave the processors to the other contenders.
void ggml_peer_resume(void * peer) { ggml_threadpool_resume(static_cast<Peer *>(peer)->pool); }
void ggml_peer_pause(void * peer) { ggml_threadpool_pause(static_cast<Peer *>(peer)->pool); }

int ggml_peer_run(void * peer) {
    auto * p = static_cast<Peer *>(peer);
    return ggml_backend_graph_compute(p->backend, p->graph);
}

// [queries][q_heads][dim] f32
const float * ggml_peer_out(void * peer) { return static_cast<const float *>(static_cast<Peer *>(peer)->out->data); }

// Reads `n` words once, which measures the bandwidth that attention cannot exceed.
uint64_t peer_read(const uint64_t * x, int64_t n) {
    using Line = uint64_t __attribute__((vector_size(64)));
    const auto * lines = reinterpret_cast<const Line *>(x);
    constexpr uintptr_t AHEAD = 16384;
    Line a{}, b{}, c{}, d{};
    for (int64_t i = 0; i + 4 <= n / 8; i += 4) {
        // Hardware prefetchers stop at the end of a page. Prefetching 16 KiB ahead reads memory up to twice as fast.
        for (int64_t line = i; line < i + 4; ++line) {
            const auto at = reinterpret_cast<uintptr_t>(lines) + static_cast<uintptr_t>(line) * sizeof(Line) + AHEAD;
            __builtin_prefetch(reinterpret_cast<const void *>(at), 0, 2);
        }
        a ^= lines[i];
        b ^= lines[i + 1];
        c ^= lines[i + 2];
        d ^= lines[i + 3];
    }
    a ^= b ^ c ^ d;
    uint64_t sum = 0;
    for (int i = 0; i < 8; ++i) sum ^= a[i];
    return sum;
}

void ggml_peer_free(void * peer) { delete static_cast<Peer *>(peer); }
}
