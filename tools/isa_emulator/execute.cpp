// Semantics by Intel's Software Developer's Manual. `entry.S` has set MXCSR as TDPBF16PS has it: round to nearest,
// denormals are zero, no exceptions. Fused multiply-adds of fp16 are computed from f32 that are never denormal, with
// rounding modes of their own.

#include "execute.hpp"

#include <immintrin.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace isa_emulator {

namespace {

constexpr int kTiles = 8;
constexpr int kMaxRows = 16;
constexpr int kRowBytes = 64;

// As in memory.
struct TileConfig {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

struct Tile {
    alignas(64) uint8_t row[kMaxRows][kRowBytes];
};

struct Tiles {
    TileConfig config;
    Tile tile[kTiles];
};

// The library is loaded when the program starts, so that this is at a fixed offset: no allocation when it is first
// used.
thread_local Tiles tiles __attribute__((tls_model("initial-exec")));

// What a processor answers with a fault.
[[noreturn]] void fault(const char* what) {
    char text[160];
    int n = std::snprintf(text, sizeof text, "isa_emulator: %s\n", what);
    if (write(STDERR_FILENO, text, n) < 0) {
        // Nothing left to tell it to.
    }
    std::abort();
}

uint64_t general(const State& state, uint8_t number) {
    return number == kNoRegister ? 0 : state.general[number];
}

uint8_t* start_of(const Memory& memory, const State& state) {
    return reinterpret_cast<uint8_t*>(general(state, memory.base) + memory.displacement);
}

uint64_t index_of(const Memory& memory, const State& state) {
    return general(state, memory.index) * memory.scale;
}

bool all_zero(const void* bytes, size_t n) {
    const uint8_t* byte = static_cast<const uint8_t*>(bytes);
    for (size_t i = 0; i < n; ++i) {
        if (byte[i] != 0) return false;
    }
    return true;
}

void load_config(const uint8_t* from) {
    TileConfig config;
    std::memcpy(&config, from, sizeof config);
    if (config.palette == 0) {
        tiles = {};
        return;
    }
    if (config.palette != 1) fault("ldtilecfg: palette is neither 0 nor 1");
    if (config.start_row != 0) fault("ldtilecfg: a start_row other than 0 is not emulated");
    if (!all_zero(config.reserved, sizeof config.reserved)) fault("ldtilecfg: reserved bytes are not 0");
    for (int i = 0; i < 16; ++i) {
        bool fits = i < kTiles ? config.row_bytes[i] <= kRowBytes && config.rows[i] <= kMaxRows
                               : config.row_bytes[i] == 0 && config.rows[i] == 0;
        if (!fits) fault("ldtilecfg: a tile is too large, or there is no such tile");
        if ((config.row_bytes[i] == 0) != (config.rows[i] == 0))
            fault("ldtilecfg: a tile has rows or columns, not both");
    }
    tiles = {};
    tiles.config = config;
}

Tile& configured(uint8_t number) {
    if (tiles.config.palette == 0) fault("tiles are not configured");
    if (tiles.config.rows[number] == 0) fault("a tile is not configured");
    return tiles.tile[number];
}

void load_tile(const Instruction& a, const State& state) {
    Tile& tile = configured(a.reg);
    const uint8_t* from = start_of(a.memory, state);
    uint64_t stride = index_of(a.memory, state);
    int rows = tiles.config.rows[a.reg];
    __mmask64 columns = ~0ULL >> (kRowBytes - tiles.config.row_bytes[a.reg]);
    for (int r = 0; r < rows; ++r) _mm512_store_si512(tile.row[r], _mm512_maskz_loadu_epi8(columns, from + r * stride));
    for (int r = rows; r < kMaxRows; ++r) _mm512_store_si512(tile.row[r], _mm512_setzero_si512());
}

void store_tile(const Instruction& a, const State& state) {
    const Tile& tile = configured(a.reg);
    uint8_t* to = start_of(a.memory, state);
    uint64_t stride = index_of(a.memory, state);
    __mmask64 columns = ~0ULL >> (kRowBytes - tiles.config.row_bytes[a.reg]);
    for (int r = 0; r < tiles.config.rows[a.reg]; ++r) {
        _mm512_mask_storeu_epi8(to + r * stride, columns, _mm512_load_si512(tile.row[r]));
    }
}

// The even and the odd bf16 of 16 pairs, as f32.
__m512 even(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

__m512 odd(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

void multiply_tiles(const Instruction& instruction) {
    Tile &c = configured(instruction.reg), &a = configured(instruction.rm), &b = configured(instruction.vvvv);
    const TileConfig& config = tiles.config;
    bool distinct = &c != &a && &c != &b && &a != &b;
    if (!distinct) fault("tdpbf16ps: two operands are the same tile");
    int rows = config.rows[instruction.reg];
    int columns = config.row_bytes[instruction.reg] / 4;
    int depth = config.row_bytes[instruction.rm] / 4;
    bool whole = config.row_bytes[instruction.reg] % 4 == 0 && config.row_bytes[instruction.rm] % 4 == 0;
    bool fits = config.rows[instruction.rm] == rows && config.rows[instruction.vvvv] == depth &&
                config.row_bytes[instruction.vvvv] == config.row_bytes[instruction.reg];
    if (!whole || !fits) fault("tdpbf16ps: shapes of tiles do not match");
    __mmask16 lanes = 0xFFFF >> (16 - columns);
    __m512 b_even[kMaxRows], b_odd[kMaxRows];
    for (int k = 0; k < depth; ++k) {
        __m512i pairs = _mm512_load_si512(b.row[k]);
        b_even[k] = even(pairs);
        b_odd[k] = odd(pairs);
    }
    for (int m = 0; m < rows; ++m) {
        // Even and odd products have sums of their own, which are added to the result in the end.
        __m512 sum_even = _mm512_setzero_ps(), sum_odd = _mm512_setzero_ps();
        for (int k = 0; k < depth; ++k) {
            int pair;
            std::memcpy(&pair, a.row[m] + 4 * k, 4);
            __m512i pairs = _mm512_set1_epi32(pair);
            sum_even = _mm512_fmadd_ps(even(pairs), b_even[k], sum_even);
            sum_odd = _mm512_fmadd_ps(odd(pairs), b_odd[k], sum_odd);
        }
        __m512 sum = _mm512_add_ps(_mm512_load_ps(c.row[m]), _mm512_add_ps(sum_even, sum_odd));
        _mm512_store_ps(c.row[m], _mm512_maskz_mov_ps(lanes, sum));
    }
    for (int m = rows; m < kMaxRows; ++m) _mm512_store_si512(c.row[m], _mm512_setzero_si512());
}

// The f32 instruction with the operand order of the fp16 one: a NaN among the operands is chosen by their order.
#define FMADD(op, rounding, a, b, c) \
    switch (op) { \
        case Op::Fmadd132Ph: asm("vfmadd132ps %{" rounding "-sae%}, %2, %1, %0" : "+v"(a) : "v"(b), "v"(c)); break; \
        case Op::Fmadd213Ph: asm("vfmadd213ps %{" rounding "-sae%}, %2, %1, %0" : "+v"(a) : "v"(b), "v"(c)); break; \
        default: asm("vfmadd231ps %{" rounding "-sae%}, %2, %1, %0" : "+v"(a) : "v"(b), "v"(c)); break; \
    }

enum Rounding { kNearest = 0, kDown = 1, kUp = 2, kToZero = 3 };

// Fused multiply-add of 16 fp16 with one rounding. The product of two fp16 is exact in f32. The sum is rounded to odd
// (towards zero, and the last bit set if anything was lost), so that the second rounding to fp16 sees on which side of
// a tie it was. f32 has 13 bits more than fp16, two are enough. No number here is denormal as f32: all are multiples of
// 2^-48.
__m256i fmadd(Op op, int rounding, __m256i first, __m256i second, __m256i third) {
    __m512 a = _mm512_cvtph_ps(first), b = _mm512_cvtph_ps(second), c = _mm512_cvtph_ps(third);
    __m512 down = a, up = a, sum = a;
    FMADD(op, "rd", down, b, c)
    FMADD(op, "ru", up, b, c)
    FMADD(op, "rz", sum, b, c)
    __mmask16 inexact = _mm512_cmp_ps_mask(down, up, _CMP_NEQ_OQ);
    __m512i bits = _mm512_castps_si512(sum);
    sum = _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, inexact, bits, _mm512_set1_epi32(1)));
    switch (rounding) {
        case kNearest: return _mm512_cvtps_ph(sum, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        case kUp: return _mm512_cvtps_ph(sum, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
        case kToZero: return _mm512_cvtps_ph(sum, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        default:
            // x - x is -0 here.
            __mmask16 zero = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_EQ_OQ);
            sum = _mm512_mask_mov_ps(sum, zero, down);
            return _mm512_cvtps_ph(sum, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    }
}

void multiply_add(const Instruction& a, State& state) {
    __mmask32 lanes = 0xFFFFFFFF >> (32 - a.vector_bytes / 2);
    __mmask32 written = a.mask == 0 ? lanes : lanes & static_cast<__mmask32>(state.k[a.mask]);
    __m512i third;
    if (!a.has_memory) {
        third = _mm512_load_si512(state.zmm[a.rm]);
    } else {
        const uint8_t* from = start_of(a.memory, state) + index_of(a.memory, state);
        // Elements that are masked out are not read: they may lie on a page that is not there.
        if (!a.broadcast) {
            third = _mm512_maskz_loadu_epi16(written, from);
        } else {
            short element = 0;
            if (written != 0) std::memcpy(&element, from, 2);
            third = _mm512_set1_epi16(element);
        }
    }
    __m512i first = _mm512_load_si512(state.zmm[a.reg]), second = _mm512_load_si512(state.zmm[a.vvvv]);
    int rounding = a.rounding >= 0 ? a.rounding : state.mxcsr >> 13 & 3;
    auto low = [](__m512i x) { return _mm512_castsi512_si256(x); };
    auto high = [](__m512i x) { return _mm512_extracti64x4_epi64(x, 1); };
    __m256i results = fmadd(a.op, rounding, low(first), low(second), low(third));
    __m256i others = fmadd(a.op, rounding, high(first), high(second), high(third));
    __m512i result = _mm512_inserti64x4(_mm512_castsi256_si512(results), others, 1);
    result = _mm512_mask_mov_epi16(a.zeroing ? _mm512_setzero_si512() : first, written, result);
    // What lies above the vector becomes 0.
    _mm512_store_si512(state.zmm[a.reg], _mm512_maskz_mov_epi16(lanes, result));
}

}  // namespace

void execute(const Instruction& instruction, State& state) {
    switch (instruction.op) {
        case Op::LdTileCfg: {
            return load_config(start_of(instruction.memory, state) + index_of(instruction.memory, state));
        }
        case Op::StTileCfg: {
            uint8_t* to = start_of(instruction.memory, state) + index_of(instruction.memory, state);
            std::memcpy(to, &tiles.config, sizeof tiles.config);
            return;
        }
        case Op::TileRelease: tiles = {}; return;
        case Op::TileZero: configured(instruction.reg) = {}; return;
        case Op::TileLoad: return load_tile(instruction, state);
        case Op::TileStore: return store_tile(instruction, state);
        case Op::TdpBf16Ps: return multiply_tiles(instruction);
        case Op::Fmadd132Ph:
        case Op::Fmadd213Ph:
        case Op::Fmadd231Ph: return multiply_add(instruction, state);
    }
}

}  // namespace isa_emulator
