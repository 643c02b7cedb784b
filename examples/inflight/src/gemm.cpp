#include "gemm.hpp"

#include <ggml-cpu.h>

#include <algorithm>

namespace inflight {
namespace {

/** Rows of a block of weights are a multiple of this: most tiles of FloatKernels are then full. */
constexpr std::size_t ROWS_STEP = 16;
/** Bytes of a block of weights, which should stay in the level-2 cache beside some rows of x. */
constexpr std::size_t BLOCK_BYTES = 64 << 10;
/** Blocks for each thread, so that one that is held up leaves the rest to the others. */
constexpr std::size_t BLOCKS_PER_THREAD = 4;
/** Rows of x that dot products go through before the next row of weights. */
constexpr std::size_t ROWS_OF_X = 16;

std::size_t rows_of_block(const Matrix &w, std::size_t threads) {
    const std::size_t of_cache = BLOCK_BYTES / std::max<std::size_t>(w.row_bytes, 1);
    const std::size_t of_threads = threads > 1 ? w.n / (threads * BLOCKS_PER_THREAD) : w.n;
    return std::max<std::size_t>(std::min(of_cache, of_threads) / ROWS_STEP, 1) * ROWS_STEP;
}

/** Calls multiply(rows of w) for all blocks of a weight. */
template <class Multiply>
void for_blocks(ThreadTeam &team, const Matrix &w, const Multiply &multiply) {
    const std::size_t step = rows_of_block(w, team.size());
    team.run((w.n + step - 1) / step, [&](std::size_t block) {
        multiply(Range{block * step, std::min((block + 1) * step, w.n)});
    });
}

}  // namespace

struct Gemm::Product {
    const float *x;
    std::size_t rows;
    const Matrix &w;
    /** The first column of the result in a row of `y_stride`. */
    float *y;
    std::size_t y_stride;
};

Gemm::Gemm(ThreadTeam &team, Kernels kernels) : team_(team), kernels_(kernels) {
    // Fills tables that dot products use.
    ggml_cpu_init();
}

Gemm::FloatKernel Gemm::float_kernel(ggml_type type) const {
    const FloatKernels *const k = kernels_.floats;
    switch (type) {
    case GGML_TYPE_F32: return k ? k->f32 : nullptr;
    case GGML_TYPE_F16: return k ? k->f16 : nullptr;
    case GGML_TYPE_BF16: return k ? k->bf16 : nullptr;
    default: return nullptr;
    }
}

Gemm::IntegerKernel Gemm::integer_kernel(ggml_type type) const {
    const Q8Kernels *const k = kernels_.integers;
    switch (type) {
    case GGML_TYPE_Q8_0: return k ? k->q8_0 : nullptr;
    case GGML_TYPE_Q4_0: return k ? k->q4_0 : nullptr;
    default: return nullptr;
    }
}

/** Rows of x as `type`: valid until the next call for that type. */
const Gemm::Converted &Gemm::convert(ggml_type type, const float *x, std::size_t rows, std::size_t k) {
    auto at = std::find_if(converted_.begin(), converted_.end(), [&](const Converted &c) { return c.type == type; });
    if (at == converted_.end()) {
        at = converted_.insert(at, {type, 0, {}});
    }
    Converted &to = *at;
    to.row_bytes = ggml_row_size(type, static_cast<std::int64_t>(k));
    if (to.rows.size() < rows * to.row_bytes) {
        to.rows.resize(rows * to.row_bytes);
    }
    const auto from_float = ggml_get_type_traits_cpu(type)->from_float;
    team_.run(rows, [&](std::size_t i) {
        from_float(x + i * k, to.rows.data() + i * to.row_bytes, static_cast<std::int64_t>(k));
    });
    return to;
}

void Gemm::multiply(const Product &p) {
    const Matrix &w = p.w;
    if (const IntegerKernel kernel = integer_kernel(w.type)) {
        multiply_integers(p, kernel);
    } else if (const FloatKernel kernel = float_kernel(w.type)) {
        for_blocks(team_, w, [&](Range rows) {
            kernel({p.x, p.rows, w.k, w.row(rows.from), rows.size(), w.row_bytes, w.k, p.y + rows.from, p.y_stride});
        });
    } else {
        multiply_dots(p);
    }
}

void Gemm::multiply_integers(const Product &p, IntegerKernel kernel) {
    const Matrix &w = p.w;
    const Converted &x = convert(GGML_TYPE_Q8_0, p.x, p.rows, w.k);
    const std::size_t row_bytes = kernels_.integers->packed_bytes(w.k);
    if (packed_.size() < p.rows * row_bytes) {
        packed_.resize(p.rows * row_bytes);
    }
    team_.run(p.rows, [&](std::size_t i) {
        kernels_.integers->pack(x.rows.data() + i * x.row_bytes, w.k, packed_.data() + i * row_bytes);
    });
    for_blocks(team_, w, [&](Range rows) {
        kernel({packed_.data(), p.rows, row_bytes, w.row(rows.from), rows.size(), w.row_bytes, w.k, p.y + rows.from,
                p.y_stride});
    });
}

void Gemm::multiply_dots(const Product &p) {
    const Matrix &w = p.w;
    const ggml_type_traits_cpu &traits = *ggml_get_type_traits_cpu(w.type);
    const Converted &x = convert(traits.vec_dot_type, p.x, p.rows, w.k);
    for_blocks(team_, w, [&](Range rows) {
        for (std::size_t row = 0; row < p.rows; row += ROWS_OF_X) {
            const std::size_t end = std::min(row + ROWS_OF_X, p.rows);
            for (std::size_t j = rows.from; j < rows.to; j++) {
                for (std::size_t i = row; i < end; i++) {
                    traits.vec_dot(static_cast<int>(w.k), p.y + i * p.y_stride + j, 0, w.row(j), 0,
                                   x.rows.data() + i * x.row_bytes, 0, 1);
                }
            }
        }
    });
}

void Gemm::multiply(const float *x, std::size_t rows, const Weight &w, float *y) {
    for (const Matrix &part : w.parts) {
        multiply({x, rows, part, y, w.n});
        y += part.n;
    }
}

std::string Gemm::describe(const std::set<ggml_type> &types) const {
    std::string text;
    for (const ggml_type type : types) {
        text += (text.empty() ? "" : ", ") + std::string(ggml_type_name(type)) + " by " +
                (integer_kernel(type) ? kernels_.integers->name : float_kernel(type) ? kernels_.floats->name : "ggml");
    }
    return text + ", threads: " + std::to_string(team_.size());
}

}  // namespace inflight
