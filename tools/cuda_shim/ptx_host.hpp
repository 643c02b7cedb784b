// Host half of kernels/ptx.cuh, which includes it: the primitives of device code, with the same meaning, for g++.
//
// The only system headers are <cstdint> and <cstddef>: NVRTC has none, and device code must not depend on their names.
#pragma once

#include "device_thread.hpp"

#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

#define SKC_DEVICE inline
#define SKC_EXPORT __attribute__((visibility("default")))
// The driver reads the two numbers: it copies as many bytes of parameters, and rejects a launch of more threads.
#define SKC_KERNEL(threads_, name, Params)                                                    \
    extern "C" {                                                                              \
    SKC_EXPORT unsigned name##_param_bytes = sizeof(Params);                                  \
    SKC_EXPORT unsigned name##_threads = (threads_);                                          \
    SKC_EXPORT void name(const Params& p);                                                    \
    }                                                                                         \
    void name([[maybe_unused]] const Params& p)

// ---- Indices

SKC_DEVICE u32 thread() { return skc_shim::current_thread()->index; }
SKC_DEVICE u32 lane() { return skc_shim::current_thread()->lane; }
SKC_DEVICE u32 warp() { return skc_shim::current_thread()->index / 32; }
SKC_DEVICE u32 block_x() { return skc_shim::current_thread()->block[0]; }
SKC_DEVICE u32 block_y() { return skc_shim::current_thread()->block[1]; }
SKC_DEVICE u32 block_z() { return skc_shim::current_thread()->block[2]; }
SKC_DEVICE u32 grid_x() { return skc_shim::current_thread()->grid[0]; }
SKC_DEVICE u32 grid_y() { return skc_shim::current_thread()->grid[1]; }
SKC_DEVICE u32 grid_z() { return skc_shim::current_thread()->grid[2]; }
SKC_DEVICE u8* shared_memory() { return skc_shim::current_thread()->shared; }

// ---- Barriers and shuffles. Lanes of a warp must be at the same source line, which error messages name.

namespace skc_shim {

inline void sync(SyncOp op, int line) {
    DeviceThread* self = current_thread();
    self->runtime->sync(self, op, line);
}

template <class T>
inline T shuffle_from(T x, uint32_t source, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 64 bits");
    DeviceThread* self = current_thread();
    self->operands.value = 0;
    __builtin_memcpy(&self->operands.value, &x, sizeof(T));
    self->operands.source = source;
    self->runtime->sync(self, SyncOp::shuffle, line);
    __builtin_memcpy(&x, &self->operands.value, sizeof(T));
    return x;
}

inline void load_matrix(SyncOp op, uint32_t* r, const void* row, int line) {
    DeviceThread* self = current_thread();
    self->operands.r = r;
    self->operands.row = row;
    self->runtime->sync(self, op, line);
}

inline void mma(SyncOp op, float* c, const uint32_t* a, const uint32_t* b, int line) {
    DeviceThread* self = current_thread();
    self->operands.a = a;
    self->operands.b = b;
    self->operands.c = c;
    self->runtime->sync(self, op, line);
}

}  // namespace skc_shim

SKC_DEVICE void block_sync(int line = __builtin_LINE()) { skc_shim::sync(skc_shim::SyncOp::block_sync, line); }
SKC_DEVICE void cluster_sync(int line = __builtin_LINE()) { skc_shim::sync(skc_shim::SyncOp::cluster_sync, line); }
SKC_DEVICE void warp_sync(int line = __builtin_LINE()) { skc_shim::sync(skc_shim::SyncOp::warp_sync, line); }

template <class T>
SKC_DEVICE T shuffle(T x, u32 src_lane, int line = __builtin_LINE()) {
    return skc_shim::shuffle_from(x, src_lane % 32, line);
}

template <class T>
SKC_DEVICE T shuffle_xor(T x, u32 mask, int line = __builtin_LINE()) {
    return skc_shim::shuffle_from(x, (lane() ^ mask) % 32, line);
}

// Bit l: the input of lane l.
SKC_DEVICE u32 warp_ballot(bool x, int line = __builtin_LINE()) {
    skc_shim::DeviceThread* self = skc_shim::current_thread();
    self->operands.value = x;
    self->runtime->sync(self, skc_shim::SyncOp::ballot, line);
    return static_cast<u32>(self->operands.value);
}

SKC_DEVICE bool warp_any(bool x, int line = __builtin_LINE()) { return warp_ballot(x, line) != 0; }

SKC_DEVICE void begin_kernel() {
    skc_shim::DeviceThread* self = skc_shim::current_thread();
    self->runtime->wait_for_preceding_kernel(self);
}

// ---- Thread block clusters. An address is the block's rank and an offset in its shared memory.

constexpr bool HAS_CLUSTERS = true;

SKC_DEVICE u32 cluster_size() { return skc_shim::current_thread()->cluster_size; }
SKC_DEVICE u32 cluster_address(const void* shared, u32 rank) {
    return rank << 24 | static_cast<u32>(static_cast<const u8*>(shared) - shared_memory());
}

namespace skc_shim {

template <u32 N>
inline void load_cluster(float (&x)[N], u32 address) {
    DeviceThread* self = current_thread();
    __builtin_memcpy(x, self->runtime->cluster_memory(self, address >> 24, address & 0xFFFFFF, sizeof x), sizeof x);
}

}  // namespace skc_shim

SKC_DEVICE void load_cluster_x2(float (&x)[2], u32 address) { skc_shim::load_cluster(x, address); }
SKC_DEVICE void load_cluster_x4(float (&x)[4], u32 address) { skc_shim::load_cluster(x, address); }

// ---- Asynchronous copies into shared memory

template <u32 BYTES>
SKC_DEVICE void copy_async(void* shared, const void* global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what the instruction copies");
    skc_shim::DeviceThread* self = skc_shim::current_thread();
    self->runtime->copy_async(self, shared, global, BYTES, valid);
}

SKC_DEVICE void copy_async_commit() {
    skc_shim::DeviceThread* self = skc_shim::current_thread();
    self->runtime->copy_async_commit(self);
}

template <int N>
SKC_DEVICE void copy_async_wait() {
    skc_shim::DeviceThread* self = skc_shim::current_thread();
    self->runtime->copy_async_wait(self, N);
}

// ---- Matrices

SKC_DEVICE void load_matrix_x2(u32 (&r)[2], const void* row, int line = __builtin_LINE()) {
    skc_shim::load_matrix(skc_shim::SyncOp::load_matrix_x2, r, row, line);
}
SKC_DEVICE void load_matrix_x2_trans(u32 (&r)[2], const void* row, int line = __builtin_LINE()) {
    skc_shim::load_matrix(skc_shim::SyncOp::load_matrix_x2_trans, r, row, line);
}
SKC_DEVICE void load_matrix_x4(u32 (&r)[4], const void* row, int line = __builtin_LINE()) {
    skc_shim::load_matrix(skc_shim::SyncOp::load_matrix_x4, r, row, line);
}
SKC_DEVICE void load_matrix_x4_trans(u32 (&r)[4], const void* row, int line = __builtin_LINE()) {
    skc_shim::load_matrix(skc_shim::SyncOp::load_matrix_x4_trans, r, row, line);
}

SKC_DEVICE u32 transpose_matrix(u32 x, int line = __builtin_LINE()) {
    skc_shim::DeviceThread* self = skc_shim::current_thread();
    self->operands.r = &x;
    self->runtime->sync(self, skc_shim::SyncOp::transpose_matrix, line);
    return x;
}

SKC_DEVICE void mma_16816_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], int line = __builtin_LINE()) {
    skc_shim::mma(skc_shim::SyncOp::mma_f16, c, a, b, line);
}
SKC_DEVICE void mma_16816_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], int line = __builtin_LINE()) {
    skc_shim::mma(skc_shim::SyncOp::mma_bf16, c, a, b, line);
}

// ---- Numbers

#include "convert.hpp"

SKC_DEVICE float f16_to_f32(u16 h) { return skc_shim::f16_to_f32(h); }
SKC_DEVICE float bf16_to_f32(u16 h) { return skc_shim::bf16_to_f32(h); }
SKC_DEVICE u16 f32_to_f16(float x) { return skc_shim::f32_to_f16(x); }
SKC_DEVICE u16 f32_to_bf16(float x) { return skc_shim::f32_to_bf16(x); }
SKC_DEVICE u32 pack_f16(float lo, float hi) { return f32_to_f16(lo) | static_cast<u32>(f32_to_f16(hi)) << 16; }
SKC_DEVICE u32 pack_bf16(float lo, float hi) { return f32_to_bf16(lo) | static_cast<u32>(f32_to_bf16(hi)) << 16; }

// Products are exact in f32. Sums are rounded to f32 first, which changes none that is exact, nor one with zero.
SKC_DEVICE u32 fma_bf16x2(u32 x, u32 y, u32 z) {
    u32 result = 0;
    for (u32 shift = 0; shift < 32; shift += 16) {
        auto half = [&](u32 pair) { return bf16_to_f32(static_cast<u16>(pair >> shift)); };
        result |= static_cast<u32>(f32_to_bf16(half(x) * half(y) + half(z))) << shift;
    }
    return result;
}
SKC_DEVICE u32 byte_permute(u32 x, u32 y, u32 digits) {
    u64 bytes = static_cast<u64>(y) << 32 | x;
    u32 result = 0;
    for (u32 i = 0; i < 4; ++i) result |= (static_cast<u32>(bytes >> 8 * (digits >> 4 * i & 7)) & 255) << 8 * i;
    return result;
}

// ex2.approx.ftz: subnormal arguments and results are flushed to zero.
SKC_DEVICE float exp2_fast(float x) {
    float y = __builtin_exp2f(__builtin_fabsf(x) < __FLT_MIN__ ? 0.0f : x);
    return y < __FLT_MIN__ ? 0.0f : y;
}
SKC_DEVICE float exp_f(float x) { return __builtin_expf(x); }
SKC_DEVICE float log_f(float x) { return __builtin_logf(x); }
SKC_DEVICE float tanh_f(float x) { return __builtin_tanhf(x); }
// Kernels are compiled without contraction.
SKC_DEVICE float sub_f(float x, float y) { return x - y; }

// ---- Between blocks, and with the host. Each lets other threads run, before or after it.

namespace skc_shim {

inline void yield() {
    DeviceThread* self = current_thread();
    self->runtime->yield(self);
}

inline void check_aligned(const void* p, uintptr_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
        DeviceThread* self = current_thread();
        self->runtime->fail(self, "misaligned atomic access");
    }
}

}  // namespace skc_shim

// Returns the old value; wraps to 0 after `last`.
SKC_DEVICE u32 atomic_inc(u32* p, u32 last) {
    skc_shim::check_aligned(p, sizeof(u32));
    skc_shim::yield();
    u32 old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (
        !__atomic_compare_exchange_n(p, &old, old >= last ? 0 : old + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
    }
    skc_shim::yield();
    return old;
}

SKC_DEVICE u32 atomic_exchange(u32* p, u32 x) {
    skc_shim::check_aligned(p, sizeof(u32));
    skc_shim::yield();
    u32 old = __atomic_exchange_n(p, x, __ATOMIC_ACQ_REL);
    skc_shim::yield();
    return old;
}

SKC_DEVICE u32 load_system(const u32* p) {
    skc_shim::check_aligned(p, sizeof(u32));
    u32 x = __atomic_load_n(p, __ATOMIC_RELAXED);
    skc_shim::yield();
    return x;
}

SKC_DEVICE void store_system(u32* p, u32 x) {
    skc_shim::check_aligned(p, sizeof(u32));
    skc_shim::yield();
    __atomic_store_n(p, x, __ATOMIC_RELAXED);
}

SKC_DEVICE void fence_system() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    skc_shim::yield();
}
