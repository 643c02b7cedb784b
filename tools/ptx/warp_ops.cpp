// Instructions that a warp executes together. Layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point
// type", ldmatrix, movmatrix, shfl.sync.
#include <cmath>
#include <cstring>

#include "instruction_table.hpp"
#include "warp.hpp"

namespace ptx {

void shuffle(Warp& w, const Instruction& i, u32 m) {
    u32* d = w.reg<u32>(i.operands[0]);
    const u32* b = w.reg<u32>(i.operands[3]);
    const u32* c = w.reg<u32>(i.operands[4]);
    u32 a[32], out[32], p = 0;
    std::memcpy(a, w.reg<u32>(i.operands[2]), sizeof a);
    for (u32 lane = 0; lane < 32; ++lane) {
        if (!(m >> lane & 1)) continue;
        u32 value = b[lane] & 31, clamp = c[lane] & 31, mask = c[lane] >> 8 & 31;
        u32 most = (lane & mask) | (clamp & ~mask), least = lane & mask;
        i32 j = 0;
        bool ok = false;
        switch (i.mode) {
            case 0:
                j = static_cast<i32>(lane) - static_cast<i32>(value);
                ok = j >= static_cast<i32>(most);
                break;
            case 1:
                j = static_cast<i32>(lane + value);
                ok = j <= static_cast<i32>(most);
                break;
            case 2:
                j = static_cast<i32>(lane ^ value);
                ok = j <= static_cast<i32>(most);
                break;
            case 3:
                j = static_cast<i32>(least | (value & ~mask));
                ok = j <= static_cast<i32>(most);
                break;
        }
        if (!ok) j = static_cast<i32>(lane);
        if (!(m >> j & 1)) w.fail("shfl from a lane that does not take part");
        out[lane] = a[j];
        p |= static_cast<u32>(ok) << lane;
    }
    for (u32 lane = 0; lane < 32; ++lane) {
        if (m >> lane & 1) d[lane] = out[lane];
    }
    if (i.width[1]) w.p[i.operands[1]] = (w.p[i.operands[1]] & ~m) | p;
}

void vote(Warp& w, const Instruction& i, u32 m) {
    u32 votes = w.p[i.operands[1]];
    if (i.negated_source) votes = ~votes;
    votes &= m;
    bool result = i.mode == 0 ? votes != 0 : i.mode == 1 ? votes == m : votes == m || votes == 0;
    w.p[i.operands[0]] = (w.p[i.operands[0]] & ~m) | (result ? m : 0);
}

void warp_barrier(Warp& w, const Instruction&, u32) { warp_barrier_passed(w); }

void load_matrix(Warp& w, const Instruction& i, u32) {
    u16 tile[4][8][8];
    for (u32 l = 0; l < 8u * i.count; ++l) {
        u64 address = (i.wide_address ? w.reg<u64>(i.operands[kAddress])[l] : w.reg<u32>(i.operands[kAddress])[l]) +
                      static_cast<u64>(i.offset);
        const u8* p = w.shared(address, 16, l);
        if (Options::get().race) shared_access(w, static_cast<u32>(address - kSharedBase), 16, l, false, true);
        std::memcpy(tile[l / 8][l % 8], p, 16);
    }
    for (u32 k = 0; k < i.count; ++k) {
        u32* d = w.reg<u32>(i.operands[k]);
        for (u32 l = 0; l < 32; ++l) {
            u32 row = l / 4, column = 2 * (l % 4);
            u16 low = i.transposed ? tile[k][column][row] : tile[k][row][column];
            u16 high = i.transposed ? tile[k][column + 1][row] : tile[k][row][column + 1];
            d[l] = u32{high} << 16 | low;
        }
    }
}

void move_matrix(Warp& w, const Instruction& i, u32) {
    u16 tile[8][8];
    const u32* a = w.reg<u32>(i.operands[1]);
    for (u32 l = 0; l < 32; ++l) {
        tile[l / 4][2 * (l % 4)] = static_cast<u16>(a[l]);
        tile[l / 4][2 * (l % 4) + 1] = static_cast<u16>(a[l] >> 16);
    }
    u32* d = w.reg<u32>(i.operands[0]);
    for (u32 l = 0; l < 32; ++l) d[l] = u32{tile[2 * (l % 4) + 1][l / 4]} << 16 | tile[2 * (l % 4)][l / 4];
}

namespace {

const float* halves() {
    static const auto* t = [] {
        auto* x = new float[65536];
        for (u32 h = 0; h < 65536; ++h) x[h] = half_to_float(static_cast<u16>(h));
        return x;
    }();
    return t;
}

// c + the sum of eight products as tensor cores do it at worst: all aligned to the largest, cut off below 24 bits, the
// sum cut off as well.
float truncated(float c, const double* products) {
    double largest = std::fabs(static_cast<double>(c));
    bool finite = std::isfinite(c);
    for (u32 k = 0; k < 8; ++k) {
        largest = std::max(largest, std::fabs(products[k]));
        finite = finite && std::isfinite(products[k]);
    }
    if (!finite) {
        double s = c;
        for (u32 k = 0; k < 8; ++k) s += products[k];
        return static_cast<float>(s);
    }
    if (largest == 0) return c;
    int e;
    std::frexp(largest, &e);
    double unit = std::ldexp(1.0, std::max(e - 24, -149));
    double sum = std::trunc(c / unit);
    for (u32 k = 0; k < 8; ++k) sum += std::trunc(products[k] / unit);
    double exact = sum * unit;
    float y = static_cast<float>(exact);
    if (std::fabs(static_cast<double>(y)) > std::fabs(exact)) y = std::nextafterf(y, 0.0f);
    return y;
}

}  // namespace

// o: 0-3 d, 4-7 a, 8-9 b, 10-13 c
void multiply(Warp& w, const Instruction& i, u32) {
    float a[16][16], b[16][8], c[16][8];
    const float* half = halves();
    auto widen = [&](u16 h) {
        if (!i.bf16) return half[h];
        u32 bits = u32{h} << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    };
    for (u32 l = 0; l < 32; ++l) {
        u32 group = l >> 2, t = l % 4;
        for (u32 k = 0; k < 8; ++k) {
            u32 row = (k < 2 || (k >= 4 && k < 6)) ? group : group + 8;
            u32 column = 2 * t + (k & 1) + (k >= 4 ? 8 : 0);
            u32 x = w.reg<u32>(i.operands[4 + k / 2])[l];
            a[row][column] = widen(static_cast<u16>(k & 1 ? x >> 16 : x));
        }
        for (u32 k = 0; k < 4; ++k) {
            u32 row = 2 * t + (k & 1) + (k >= 2 ? 8 : 0);
            u32 x = w.reg<u32>(i.operands[8 + k / 2])[l];
            b[row][group] = widen(static_cast<u16>(k & 1 ? x >> 16 : x));
        }
        for (u32 k = 0; k < 4; ++k) c[k < 2 ? group : group + 8][2 * t + (k & 1)] = w.reg<float>(i.operands[10 + k])[l];
    }
    float d[16][8];
    if (Options::get().mma == 1) {
        for (u32 r = 0; r < 16; ++r) {
            for (u32 n = 0; n < 8; ++n) {
                float sum = c[r][n];
                for (u32 half_k = 0; half_k < 2; ++half_k) {
                    double products[8];
                    for (u32 k = 0; k < 8; ++k)
                        products[k] = static_cast<double>(a[r][8 * half_k + k]) * b[8 * half_k + k][n];
                    sum = truncated(sum, products);
                }
                d[r][n] = sum;
            }
        }
    } else {
        double wide[16][8];
        for (u32 k = 0; k < 16; ++k) {
            for (u32 n = 0; n < 8; ++n) wide[k][n] = b[k][n];
        }
        for (u32 r = 0; r < 16; ++r) {
            double sum[8];
            for (u32 n = 0; n < 8; ++n) sum[n] = c[r][n];
            for (u32 k = 0; k < 16; ++k) {
                double x = a[r][k];
                for (u32 n = 0; n < 8; ++n) sum[n] += x * wide[k][n];
            }
            for (u32 n = 0; n < 8; ++n) d[r][n] = static_cast<float>(sum[n]);
        }
    }
    for (u32 l = 0; l < 32; ++l) {
        for (u32 k = 0; k < 4; ++k) {
            float x = d[k < 2 ? l >> 2 : (l >> 2) + 8][2 * (l % 4) + (k & 1)];
            u32 nan = 0x7fffffff;
            if (x != x) std::memcpy(&x, &nan, 4);
            w.reg<float>(i.operands[k])[l] = x;
        }
    }
}

}  // namespace ptx
