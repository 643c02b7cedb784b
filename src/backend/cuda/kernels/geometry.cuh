// Shared memory of kernels in bytes; mirrored in launch.rs.
#pragma once

// Two queries, weights of a block of keys, scratch of block-wide sums.
#define GENERIC_SHARED(head_dim) (8 * (head_dim) + 4 * 128 + 64)
// Scratch of block-wide sums.
#define EDIT_SHARED 64
