// Program 2: attention specialised for one shape. SKC_DIM: dims of K and V; SKC_GROUP: query heads per KV head;
// SKC_TYPE: the number of the 16-bit type of q, K and V; SKC_TRANSFORM: bit 0 softcap, bit 1 ALiBi. Position mode, RoPE
// style and the type of out are branches at run time: they lie outside of all loops over keys.

#if SKC_DIM % 16 != 0 || SKC_GROUP < 1 || SKC_GROUP > 8 || (SKC_TYPE != 2 && SKC_TYPE != 3)
#error "no kernel for this shape"
#endif

#include "chunk.cuh"
#include "decode.cuh"
