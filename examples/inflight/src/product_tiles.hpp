// The tiles of a product. For files that are compiled for one instruction set: no header of the C++ library.
#pragma once

#include <stddef.h>

namespace inflight {
namespace {

/** ROWS rows of x with all rows of w. */
template <class Tile, size_t ROWS, class Product>
void multiply_rows(const Product &p, size_t row) {
    constexpr size_t COLUMNS = Tile::DOTS / ROWS;
    for (size_t j = 0; j < p.n; j += COLUMNS) {
        const size_t n = p.n - j < COLUMNS ? p.n - j : COLUMNS;
        Tile::template multiply<ROWS>(p, p.x + row * p.x_stride, p.w + j * p.w_stride, n,
                                      p.y + row * p.y_stride + j);
    }
}

/**
 * All rows of x, as many at a time as Tile::MOST_ROWS, then 4, 2 and 1. `Tile::multiply<ROWS>` takes the first of its
 * rows of x and of w, the number of those of w, at most Tile::DOTS / ROWS, and the first result.
 */
template <class Tile, class Product>
void multiply_in_tiles(const Product &p) {
    size_t row = 0;
    for (; row + Tile::MOST_ROWS <= p.rows; row += Tile::MOST_ROWS) {
        multiply_rows<Tile, Tile::MOST_ROWS>(p, row);
    }
    if (Tile::MOST_ROWS > 4 && row + 4 <= p.rows) {
        multiply_rows<Tile, 4>(p, row);
        row += 4;
    }
    if (row + 2 <= p.rows) {
        multiply_rows<Tile, 2>(p, row);
        row += 2;
    }
    if (row < p.rows) {
        multiply_rows<Tile, 1>(p, row);
    }
}

}  // namespace
}  // namespace inflight
