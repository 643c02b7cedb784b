// Weights as a file stores them, and rows of f32.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <vector>

namespace inflight {

/** A range of a matrix's rows or columns. */
struct Range {
    std::size_t from, to;

    std::size_t size() const { return to - from; }
};

/** A matrix [n, k], or some of its rows and columns, of any type of ggml: a view into the file. */
struct Matrix {
    ggml_type type = GGML_TYPE_F32;
    std::size_t n = 0, k = 0;
    const unsigned char *data = nullptr;
    /** From one row to the next. */
    std::size_t row_bytes = 0;

    const unsigned char *row(std::size_t i) const { return data + i * row_bytes; }
    /** Row `i` as f32. */
    void unpack(std::size_t i, float *out) const;
};

/** A weight W [n, k] of y = x W^T: rows of k become rows of n. Its matrices are stacked. */
struct Weight {
    std::size_t n = 0, k = 0;
    std::vector<Matrix> parts;

    Weight() = default;
    explicit Weight(std::vector<Matrix> matrices);
};

/**
 * Activations [rows, width]. The memory begins at a cache line: where widths are multiples of a vector, no vector of a
 * row lies in two lines, which would take a load of each.
 */
class Activations {
public:
    explicit Activations(std::size_t width = 0) : width_(width) {}

    /** Grows the memory if needed; the contents stay. */
    void resize(std::size_t rows) {
        const std::size_t lines = (rows * width_ + CacheLine::FLOATS - 1) / CacheLine::FLOATS;
        if (lines_.size() < lines) {
            lines_.resize(lines);
        }
    }
    std::size_t width() const { return width_; }
    float *data() { return reinterpret_cast<float *>(lines_.data()); }
    float *row(std::size_t i) { return data() + i * width_; }

private:
    struct alignas(64) CacheLine {
        static constexpr std::size_t FLOATS = 16;
        float floats[FLOATS];
    };

    std::size_t width_;
    std::vector<CacheLine> lines_;
};

}  // namespace inflight
