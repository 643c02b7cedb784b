// Program 2: attention specialised for one shape. SKC_DIM: dims of K and V; SKC_GROUP: query heads per KV head;
// SKC_TYPE: the number of the 16-bit type of q, K and V, or, for quantised ones, the numbers of the types of K and of
// V as two digits; SKC_FEATURES: bit 0 softcap, bit 1 ALiBi, bit 2 room for pinned and evicted ranges. Position mode,
// RoPE style, the type of out, and beside quantised K and V that of q, k and v are branches at run time: they lie
// outside of all loops over keys.

#include "launch_config.cuh"

#if SKC_DIM % 16 != 0 || SKC_GROUP < 1 || SKC_GROUP > 8
#error "no kernel for this shape"
#endif
#if SKC_TYPE != 2 && SKC_TYPE != 3 && SKC_TYPE != 44 && SKC_TYPE != 45 && SKC_TYPE != 55
#error "no kernel for these types"
#endif

#include "chunk.cuh"
#include "decode.cuh"
