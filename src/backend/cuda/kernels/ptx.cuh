// The only file with machine instructions: what device code needs beyond the language, for NVRTC without any header. On
// the CUDA stand-in, which runs the kernels on the CPU for tests, ptx_host.hpp defines the same names.
#pragma once

#include "types.cuh"

#ifdef SKC_HOST_SHIM
#include "ptx_host.hpp"
SKC_DEVICE float minus_infinity() { return -__builtin_inff(); }
SKC_DEVICE float max_f(float x, float y) { return __builtin_fmaxf(x, y); }
SKC_DEVICE float min_f(float x, float y) { return __builtin_fminf(x, y); }
SKC_DEVICE float round_even(float x) { return __builtin_rintf(x); }
SKC_DEVICE u32 float_bits(float x) { return __builtin_bit_cast(u32, x); }
SKC_DEVICE float bits_float(u32 x) { return __builtin_bit_cast(float, x); }
SKC_DEVICE float fma_f(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
#else

#define SKC_DEVICE __device__ __forceinline__
// The 1 asks ptxas for one block per multiprocessor only. Without it ptxas may spill registers to fit more blocks.
#define SKC_KERNEL(threads, name, Params) \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Params p)

SKC_DEVICE u32 thread() { return threadIdx.x; }
SKC_DEVICE u32 lane() { return threadIdx.x % 32; }
SKC_DEVICE u32 warp() { return threadIdx.x / 32; }
SKC_DEVICE u32 block_x() { return blockIdx.x; }
SKC_DEVICE u32 block_y() { return blockIdx.y; }
SKC_DEVICE u32 block_z() { return blockIdx.z; }
SKC_DEVICE u32 grid_y() { return gridDim.y; }
SKC_DEVICE u32 grid_z() { return gridDim.z; }

extern __shared__ __align__(16) u8 skc_shared[];
SKC_DEVICE u8* shared_memory() { return skc_shared; }
SKC_DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

SKC_DEVICE void block_sync() { __syncthreads(); }
SKC_DEVICE void warp_sync() { __syncwarp(); }

template <class T>
SKC_DEVICE T shuffle_xor(T x, u32 mask) {
    return __shfl_xor_sync(~0u, x, (int)mask);
}
template <class T>
SKC_DEVICE T shuffle(T x, u32 src_lane) {
    return __shfl_sync(~0u, x, (int)src_lane);
}
SKC_DEVICE bool warp_any(bool x) { return __any_sync(~0u, x) != 0; }

// The first statement of every kernel. In a programmatic launch the preceding kernel may still be running: this waits
// until its writes are visible and then lets the next kernel's blocks be scheduled. The order matters: since every
// kernel waits before it triggers, at most two kernels of a cache overlap.
SKC_DEVICE void begin_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// ---- Thread block clusters: blocks that run at the same time and read each other's shared memory

#if __CUDA_ARCH__ >= 900
constexpr bool HAS_CLUSTERS = true;
#else
constexpr bool HAS_CLUSTERS = false;
#endif

// Blocks of the cluster: 1 in a launch without clusters.
SKC_DEVICE u32 cluster_size() {
    u32 n = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
#endif
    return n;
}

// A barrier of all threads of the cluster, with release and acquire of what they have written to shared memory.
SKC_DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// An address in the shared memory of block `rank` of the cluster, for the loads that follow: where `shared` lies in
// this block's.
SKC_DEVICE u32 cluster_address(const void* shared, u32 rank) {
    u32 address = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
#endif
    return address;
}
SKC_DEVICE void load_cluster_x2(float (&x)[2], u32 address) {
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(x[0]), "=f"(x[1]) : "r"(address) : "memory");
#endif
}
SKC_DEVICE void load_cluster_x4(float (&x)[4], u32 address) {
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
                 : "r"(address)
                 : "memory");
#endif
}

// ---- Asynchronous copies of 4, 8 or 16 bytes. Where `valid` is false nothing is read and zeros are written.

template <u32 BYTES>
SKC_DEVICE void copy_async(void* shared, const void* global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what the instruction copies");
    u32 to = shared_address(shared);
    // Only whole vectors may bypass the L1 cache.
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES),
                     "r"(valid ? BYTES : 0)
                     : "memory");
    }
}
SKC_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
SKC_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- Matrices. Fragments are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16", ldmatrix and movmatrix.

SKC_DEVICE void load_matrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
SKC_DEVICE void load_matrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
SKC_DEVICE u32 transpose_matrix(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
SKC_DEVICE void mma_16816_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SKC_DEVICE void mma_16816_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Numbers

SKC_DEVICE float f16_to_f32(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}
SKC_DEVICE float bf16_to_f32(u16 h) { return __uint_as_float((u32)h << 16); }
SKC_DEVICE u16 f32_to_f16(float x) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
SKC_DEVICE u16 f32_to_bf16(float x) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
SKC_DEVICE u32 pack_f16(float lo, float hi) {
    u32 x;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(hi), "f"(lo));
    return x;
}
SKC_DEVICE u32 pack_bf16(float lo, float hi) {
    u32 x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(hi), "f"(lo));
    return x;
}
// x * y + z of two pairs of bf16, each rounded once.
SKC_DEVICE u32 fma_bf16x2(u32 x, u32 y, u32 z) {
    u32 result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(y), "r"(z));
    return result;
}
// Bytes of x (0 to 3) and of y (4 to 7): byte i of the result is the one that the i-th hexadecimal digit names.
SKC_DEVICE u32 byte_permute(u32 x, u32 y, u32 digits) { return __byte_perm(x, y, digits); }
SKC_DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }
// The larger number; of a NaN and a number, the number.
SKC_DEVICE float max_f(float x, float y) { return fmaxf(x, y); }
SKC_DEVICE float min_f(float x, float y) { return fminf(x, y); }
// The nearest integer; of two the even one.
SKC_DEVICE float round_even(float x) { return rintf(x); }
SKC_DEVICE u32 float_bits(float x) { return __float_as_uint(x); }
SKC_DEVICE float bits_float(u32 x) { return __uint_as_float(x); }
// x * y + z, rounded once.
SKC_DEVICE float fma_f(float x, float y, float z) { return __fmaf_rn(x, y, z); }
// x - y of the rounded x and y: the compiler does not contract it with the product that one of them is.
SKC_DEVICE float sub_f(float x, float y) { return __fsub_rn(x, y); }
SKC_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
SKC_DEVICE float exp_f(float x) { return expf(x); }
SKC_DEVICE float log_f(float x) { return logf(x); }
SKC_DEVICE float tanh_f(float x) { return tanhf(x); }

// ---- Between blocks, and with the host

// Returns the old value. Adds one; what was at least `last` becomes 0.
SKC_DEVICE u32 atomic_inc(u32* p, u32 last) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(last) : "memory");
    return old;
}
// Returns the old value.
SKC_DEVICE u32 atomic_exchange(u32* p, u32 x) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.exch.b32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(x) : "memory");
    return old;
}
// Words that the host reads or writes at any time; fence_system orders them, as fence(SeqCst) does on the host.
SKC_DEVICE u32 load_system(const u32* p) {
    u32 x;
    asm volatile("ld.relaxed.sys.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
SKC_DEVICE void store_system(u32* p, u32 x) {
    asm volatile("st.relaxed.sys.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
SKC_DEVICE void fence_system() { asm volatile("fence.sc.sys;" ::: "memory"); }

#endif

// Vectors that are loaded and stored by one instruction.
struct alignas(16) U32x4 {
    u32 x, y, z, w;
};
struct alignas(8) U32x2 {
    u32 x, y;
};
struct alignas(16) F32x4 {
    float x, y, z, w;
};
struct alignas(8) F32x2 {
    float x, y;
};

// Sums and products of two pairs of bf16: instructions of their own need sm_90.
SKC_DEVICE u32 add_bf16x2(u32 x, u32 y) { return fma_bf16x2(x, 0x3f803f80, y); }
SKC_DEVICE u32 multiply_bf16x2(u32 x, u32 y) { return fma_bf16x2(x, y, 0x80008000); }
