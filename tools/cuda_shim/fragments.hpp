// Which element of a matrix each lane holds in which register, as tables.
//
// Source: PTX ISA 9.0. With group = lane / 4 and pair = 2 * (lane % 4), element i of a lane's fragment is at row
// `row + by_row`, column `column + by_column`, where by_row and by_column are group or pair as the table says. Two
// 16-bit elements share a register, the one with the lower index in the lower half.
#pragma once

#include <cstdint>

namespace skc_shim {

struct Element {
    uint8_t row;
    uint8_t column;
};

// 9.7.14.5.8, "Matrix fragments for mma.m16n8k16 with floating point type".
// A, 16 x 16: rows go by group, columns by pair.
inline constexpr Element kMmaA[8] = {{0, 0}, {0, 1}, {8, 0}, {8, 1}, {0, 8}, {0, 9}, {8, 8}, {8, 9}};
// B, 16 x 8 (k x n): rows go by pair, columns by group.
inline constexpr Element kMmaB[4] = {{0, 0}, {1, 0}, {8, 0}, {9, 0}};
// C and D, 16 x 8: rows go by group, columns by pair.
inline constexpr Element kMmaC[4] = {{0, 0}, {0, 1}, {8, 0}, {8, 1}};

// 9.7.14.5.15, "ldmatrix", .m8n8 .b16: lanes 8i .. 8i+7 point to rows 0 .. 7 of matrix i, which goes to register i.
inline constexpr unsigned kRowsOfMatrix = 8;
// Without .trans: rows go by group, columns by pair.
inline constexpr Element kLoadMatrix[2] = {{0, 0}, {0, 1}};
// With .trans the matrix is loaded in column-major format: rows go by pair, columns by group.
inline constexpr Element kLoadMatrixTrans[2] = {{0, 0}, {1, 0}};

// 9.7.14.5.17, "movmatrix": the source is held as by ldmatrix without .trans. The result is its transpose: each lane
// gets the elements that ldmatrix with .trans would give it.

}  // namespace skc_shim
