#include "gemm.hpp"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

namespace inflight {
namespace {

void product(const float *x, std::size_t rows, std::size_t n, std::size_t k, const float *w, float *y) {
    const auto m = static_cast<blasint>(rows), cols = static_cast<blasint>(n), depth = static_cast<blasint>(k);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, cols, depth, 1.0f, x, depth, w, depth, 0.0f, y, cols);
}

/** The product of a tile in which every row is `row`. */
std::vector<float> product_of_repeated_row(const std::vector<float> &row, std::size_t tile, std::size_t n,
                                           const std::vector<float> &w) {
    std::vector<float> x, y(tile * n);
    for (std::size_t i = 0; i < tile; i++) {
        x.insert(x.end(), row.begin(), row.end());
    }
    product(x.data(), tile, n, row.size(), w.data(), y.data());
    return y;
}

bool all_rows_equal(const std::vector<float> &rows, const std::vector<float> &one) {
    for (std::size_t at = 0; at < rows.size(); at += one.size()) {
        if (std::memcmp(&rows[at], one.data(), one.size() * sizeof(float)) != 0) {
            return false;
        }
    }
    return true;
}

/** Compares with f64 sums. 1e-4 of the sum of magnitudes is far above rounding errors and far below those of a wrong
 * kernel. */
void check_kernel(const std::vector<float> &x, const std::vector<float> &w, const std::vector<float> &y) {
    for (std::size_t i = 0; i < y.size(); i++) {
        double sum = 0, size = 0;
        for (std::size_t j = 0; j < x.size(); j++) {
            const double term = static_cast<double>(x[j]) * static_cast<double>(w[i * x.size() + j]);
            sum += term;
            size += std::abs(term);
        }
        if (!(std::abs(sum - static_cast<double>(y[i])) <= 1e-4 * size)) {
            throw std::runtime_error("OpenBLAS " + std::string(openblas_get_config()) + " with its kernels for " +
                                     openblas_get_corename() + " computes " + std::to_string(y[i]) + " for " +
                                     std::to_string(sum) + ": set OPENBLAS_CORETYPE to another processor");
        }
    }
}

std::vector<std::size_t> find_tiles(std::size_t n, std::size_t k) {
    std::mt19937 random(static_cast<std::uint32_t>(n * 31 + k));
    std::normal_distribution<float> normal;
    std::vector<float> row(k), w(n * k);
    std::generate(row.begin(), row.end(), [&] { return normal(random); });
    std::generate(w.begin(), w.end(), [&] { return normal(random); });
    std::vector<std::size_t> admitted;
    std::vector<float> reference;
    // Single rows are padded to the smallest height: 8 if all its rows are equal.
    for (std::size_t base : {8, 4, 2, 1}) {
        const auto y = product_of_repeated_row(row, base, n, w);
        reference.assign(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(n));
        if (all_rows_equal(y, reference)) {
            admitted.push_back(base);
            break;
        }
    }
    check_kernel(row, w, reference);
    for (std::size_t tile = 2 * admitted.back(); tile <= Activations::TILE; tile *= 2) {
        if (all_rows_equal(product_of_repeated_row(row, tile, n, w), reference)) {
            admitted.insert(admitted.begin(), tile);
        }
    }
    return admitted;
}

}  // namespace

Gemm::Gemm(int threads) { openblas_set_num_threads(threads); }

const std::vector<std::size_t> &Gemm::prepare(std::size_t n, std::size_t k) {
    auto &tiles = tiles_[{n, k}];
    if (tiles.empty()) {
        tiles = find_tiles(n, k);
    }
    return tiles;
}

void Gemm::multiply(const float *x, std::size_t rows, const Matrix &w, float *y) {
    const auto &tiles = prepare(w.n, w.k);
    const std::size_t base = tiles.back(), end = (rows + base - 1) / base * base;
    for (std::size_t at = 0; at < end;) {
        const std::size_t tile =
            *std::find_if(tiles.begin(), tiles.end(), [&](std::size_t t) { return t <= end - at; });
        product(x + at * w.k, tile, w.n, w.k, w.values.data(), y + at * w.n);
        at += tile;
    }
}

std::string Gemm::describe() const {
    std::string text = std::string("OpenBLAS, kernels for ") + openblas_get_corename();
    for (const auto &[shape, tiles] : tiles_) {
        text += ", " + std::to_string(shape.first) + "x" + std::to_string(shape.second) + " in tiles of";
        for (std::size_t tile : tiles) {
            text += " " + std::to_string(tile);
        }
    }
    return text;
}

}  // namespace inflight
