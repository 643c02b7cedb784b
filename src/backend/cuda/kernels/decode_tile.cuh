// Decode: few queries against a tile of 16 keys, by one warp.
#pragma once

#include "launch_config.cuh"

#if !QUANTISED(SKC_TYPE)
#include "decode_numbers.cuh"
#else
#include "decode_codes.cuh"
#endif

// Adds a tile whose first key is key `first` of its range. The whole warp must call it.
SKC_DEVICE void add_tile(DecodeColumns& c, const KvTile& tile, u32 first) {
    float s[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
    multiply_keys(s, c, tile.k);
    bool masked = first < c.visible_to_all.begin || first + DECODE_KEYS > c.visible_to_all.end;
    float alpha[2];
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        score_row<DecodeLayout>(s[r], c.scorer, c.bias[r], first);
        if (masked) mask_row<DecodeLayout>(s[r], c.visible[r], first);
        alpha[r] = c.rows[r].stats.add_scores(s[r], DecodeLayout::LOW, DecodeLayout::HIGH);
    }
#pragma unroll
    for (u32 r = 0; r < 2; ++r) c.rows[r].rescale(alpha[r]);
    add_values(c, s, tile.v, masked);
}
