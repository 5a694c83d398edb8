// TIFF tiles of pixels: quantisation, transposition to band planes, TIFF predictors, 2×2 averages.
//
// A block is pixel-interleaved float32 (row, column, band), NaN where there is no data; tiles are band planes
// (tile, band, row, column) of the output's sample type, or interleaved as the block is (tile, row, column,
// band), ready for a compressor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace satclip::raster {

// A rectangle of pixels; each pixel's bands are contiguous, as are the pixels of a row.
struct Block {
    const float* data;
    std::ptrdiff_t row_stride;  // in floats
    int rows, columns, bands;
};

enum class Sample { int8, uint8, int16, float16, float32 };

// TIFF's Predictor tag: none, differences of integers along a row, byte planes of floats and their
// differences. Differences are those of a sample and the one of the same band in the pixel before.
enum class Predictor { none = 1, horizontal = 2, floating = 3 };

// code = round((value - offset) · inverse_scale) for the integer types, of uint8 with 128 added; floats are
// stored as they are.
struct Encoding {
    Sample sample;
    Predictor predictor;
    const float* inverse_scale;  // [bands], null for floats
    const float* offset;         // [bands], null for floats
};

// `side`² tiles next to each other, of which rows [first_row, first_row + block.rows) are filled.
struct Tiles {
    std::uint8_t* data;
    int side, first_row, count;
    bool interleaved = false;  // a tile is (row, column, band), not (band, row, column)
};

// Clipped and valid values that packing met; the caller sets them to zero, calls add up.
struct QuantisationStatistics {
    std::int64_t* clipped;  // [bands] values beyond the largest code (or half's largest number)
    float* overshoot;       // [bands] the farthest of them, in codes (float16: in value)
    std::int64_t* valid;    // [tiles] pixels whose first band is not NaN
};

}  // namespace satclip::raster
