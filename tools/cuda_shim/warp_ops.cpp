#include "warp_ops.hpp"

#include <cstring>

#include "fragments.hpp"
#include "convert.hpp"

namespace skc_shim {
namespace {

using Lanes = DeviceThread* const[32];

unsigned group(unsigned lane) { return lane / 4; }
unsigned pair(unsigned lane) { return lane % 4 * 2; }

void shuffle(const Lanes& lanes) {
    uint64_t input[32];
    for (int l = 0; l < 32; ++l) input[l] = lanes[l]->operands.value;
    for (int l = 0; l < 32; ++l) lanes[l]->operands.value = input[lanes[l]->operands.source];
}

void ballot(const Lanes& lanes) {
    uint64_t mask = 0;
    for (int l = 0; l < 32; ++l) mask |= lanes[l]->operands.value << l;
    for (int l = 0; l < 32; ++l) lanes[l]->operands.value = mask;
}

unsigned matrices_of(SyncOp op) {
    switch (op) {
        case SyncOp::load_matrix_x2:
        case SyncOp::load_matrix_x2_trans: return 2;
        case SyncOp::load_matrix_x4:
        case SyncOp::load_matrix_x4_trans: return 4;
        default: return 0;
    }
}

void load_matrix(const Lanes& lanes, unsigned matrices, bool trans) {
    for (unsigned m = 0; m < matrices; ++m) {
        DeviceThread* const* rows = &lanes[m * kRowsOfMatrix];
        for (unsigned l = 0; l < 32; ++l) {
            uint32_t r = 0;
            for (unsigned i = 0; i < 2; ++i) {
                Element element = trans ? kLoadMatrixTrans[i] : kLoadMatrix[i];
                unsigned row = element.row + (trans ? pair(l) : group(l));
                unsigned column = element.column + (trans ? group(l) : pair(l));
                r |= static_cast<uint32_t>(rows[row]->operands.read[column]) << (16 * i);
            }
            lanes[l]->operands.r[m] = r;
        }
    }
}

void transpose_matrix(const Lanes& lanes) {
    uint16_t matrix[8][8];
    for (unsigned l = 0; l < 32; ++l) {
        for (unsigned i = 0; i < 2; ++i) {
            matrix[kLoadMatrix[i].row + group(l)][kLoadMatrix[i].column + pair(l)] =
                static_cast<uint16_t>(*lanes[l]->operands.r >> (16 * i));
        }
    }
    for (unsigned l = 0; l < 32; ++l) {
        uint32_t r = 0;
        for (unsigned i = 0; i < 2; ++i) {
            unsigned row = kLoadMatrixTrans[i].row + pair(l), column = kLoadMatrixTrans[i].column + group(l);
            r |= static_cast<uint32_t>(matrix[row][column]) << (16 * i);
        }
        *lanes[l]->operands.r = r;
    }
}

// Products of 16-bit floats are exact in f32; sums are rounded to f32 at each step. Tensor cores round differently: no
// test may depend on the last bits.
template <float (*convert)(uint16_t)>
void mma(const Lanes& lanes) {
    float a[16][16], b[16][8], c[16][8];
    for (unsigned l = 0; l < 32; ++l) {
        const Operands& o = lanes[l]->operands;
        for (unsigned i = 0; i < 8; ++i) {
            a[kMmaA[i].row + group(l)][kMmaA[i].column + pair(l)] =
                convert(static_cast<uint16_t>(o.a[i / 2] >> (16 * (i % 2))));
        }
        for (unsigned i = 0; i < 4; ++i) {
            b[kMmaB[i].row + pair(l)][kMmaB[i].column + group(l)] =
                convert(static_cast<uint16_t>(o.b[i / 2] >> (16 * (i % 2))));
            c[kMmaC[i].row + group(l)][kMmaC[i].column + pair(l)] = o.c[i];
        }
    }
    for (auto& row : c) {
        const float* row_of_a = a[&row - c];
        for (unsigned k = 0; k < 16; ++k) {
            for (unsigned n = 0; n < 8; ++n) row[n] += row_of_a[k] * b[k][n];
        }
    }
    for (unsigned l = 0; l < 32; ++l) {
        for (unsigned i = 0; i < 4; ++i) {
            lanes[l]->operands.c[i] = c[kMmaC[i].row + group(l)][kMmaC[i].column + pair(l)];
        }
    }
}

}  // namespace

const char* name_of(SyncOp op) {
    switch (op) {
        case SyncOp::none: return "nothing";
        case SyncOp::block_sync: return "block_sync";
        case SyncOp::cluster_sync: return "cluster_sync";
        case SyncOp::warp_sync: return "warp_sync";
        case SyncOp::shuffle: return "shuffle";
        case SyncOp::ballot: return "warp_any";
        case SyncOp::load_matrix_x2: return "load_matrix_x2";
        case SyncOp::load_matrix_x2_trans: return "load_matrix_x2_trans";
        case SyncOp::load_matrix_x4: return "load_matrix_x4";
        case SyncOp::load_matrix_x4_trans: return "load_matrix_x4_trans";
        case SyncOp::transpose_matrix: return "transpose_matrix";
        case SyncOp::mma_f16: return "mma_16816 (f16)";
        case SyncOp::mma_bf16: return "mma_16816 (bf16)";
    }
    return "?";
}

const char* arrive(SyncOp op, DeviceThread& thread) {
    if (thread.lane >= matrices_of(op) * kRowsOfMatrix) return nullptr;
    auto address = reinterpret_cast<uintptr_t>(thread.operands.row);
    auto shared = reinterpret_cast<uintptr_t>(thread.shared);
    if (address % 16 != 0) return "ldmatrix: a row is not aligned to 16 bytes";
    if (address < shared || address + 16 > shared + thread.shared_bytes) {
        return "ldmatrix: a row lies outside shared memory";
    }
    std::memcpy(thread.operands.read, thread.operands.row, 16);
    return nullptr;
}

void execute(SyncOp op, DeviceThread* const (&lanes)[32]) {
    switch (op) {
        case SyncOp::none:
        case SyncOp::block_sync:
        case SyncOp::cluster_sync:
        case SyncOp::warp_sync: return;
        case SyncOp::shuffle: return shuffle(lanes);
        case SyncOp::ballot: return ballot(lanes);
        case SyncOp::load_matrix_x2:
        case SyncOp::load_matrix_x4: return load_matrix(lanes, matrices_of(op), false);
        case SyncOp::load_matrix_x2_trans:
        case SyncOp::load_matrix_x4_trans: return load_matrix(lanes, matrices_of(op), true);
        case SyncOp::transpose_matrix: return transpose_matrix(lanes);
        case SyncOp::mma_f16: return mma<f16_to_f32>(lanes);
        case SyncOp::mma_bf16: return mma<bf16_to_f32>(lanes);
    }
}

}  // namespace skc_shim
