// Table of the kernels that are compiled once per instruction set (cpu/isa/), and the structs they take.
//
// Vectors lie along SIMD lanes; a tile is up to 3 vectors of points, pixels or rows, a block up to
// `block_tiles` tiles that pass through the layers together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/raster_tiles.h"
#include "lattice.h"
#include "quantise.h"

namespace satclip {

// Coefficients of P(l,m) = a(l,m)·x·P(l−1,m) + c(l,m)·P(l−2,m), stored m-major: order m's rows l = m..L−1
// start at `legendre_offset(degrees, m)`.
struct LegendreTable {
    int degrees;  // L: harmonics of degree 0..L−1
    const double* a;
    const double* c;
};

// One dense layer, packed in panels of `panel` outputs: [panel][input][output within the panel]. The first
// layer is cut into chunks of whole orders m, each chunk packed like that on its own.
struct PackedLayer {
    int inputs;
    int outputs;
    int padded;  // outputs rounded up to whole panels
    const float* weight;
    const float* bias;  // [padded]
};

// Harmonics of degree 0..L−1, cut into chunks of whole orders.
struct HarmonicBasis {
    LegendreTable legendre;
    int chunks;
    const int* chunk_order;  // [chunks + 1] first order m of each chunk
    const int* chunk_input;  // [chunks + 1] first input of each chunk
};

struct Network {
    HarmonicBasis basis;
    int hidden;                 // sine layers, the first included
    const PackedLayer* layers;  // [hidden + 1]
    int widest;                 // padded outputs of the widest sine layer
};

// Later layers with transposed weights, for input gradients: layer i takes the outputs of layer i + 1 to its
// inputs.
struct TransposedNetwork {
    int hidden;
    const PackedLayer* layers;  // [hidden]
};

// Pre-activations whose random word is below `threshold` are dropped, the others multiplied by `scale`.
struct Dropout {
    uint32_t threshold;
    float scale;
    uint64_t seed;
};

// Weight and bias gradients of a layer, added to: (outputs, inputs) row-major and (outputs).
struct LayerGradient {
    float* weight;
    float* bias;
};

// Output of one tile: lane's result goes to out + index[lane] * stride, nowhere for index < 0.
struct TileOutput {
    float* out;
    ptrdiff_t stride;
    const int32_t* index;
};

// Up to 3 vectors of distinct longitudes, folded into [0°, 90°], and the columns that mirror them.
// Member q holds longitude: q & 1 → negative; q & 2 → 180° − folded.
struct ColumnTile {
    int vectors;
    int members;  // bit q set when member q occurs in this tile
    // [2L−1][vectors·lanes]: cos even m, cos odd m, sin odd m, sin even m
    const float* fourier_basis;
    const int32_t* column;  // [4][vectors·lanes], −1 where there is none
};

// Up to `lanes` distinct |latitudes| with the rows that have them.
struct RowGroup {
    int count;
    const double* sine;  // sin |lat| = |x|
    const double* cosine;
    float* const* south;  // per lane: row coefficients of the row with lat ≤ 0, or null
    float* const* north;  // of the row with lat > 0
};

// Operands of the contrastive loss: S[i][j] = scale · a[i] · b[j], i < rows, j < columns; row i's
// partner is column offset + i. Packed twice: along the elements for S and along the rows for gradients.
struct LossOperands {
    int rows, columns;
    int embed;  // elements of a row
    float scale;
    ptrdiff_t offset;
    const float *a_tiles, *b_panels;   // [tile or panel][element][row within it]
    const float *a_chunks, *b_chunks;  // [chunk of a tile's width of elements][row][element within it]
};

// A range of tiles of a's rows and one of panels of b's.
struct LossBlock {
    int tile, tiles;
    int panel, panels;
};

// Running sums of exponentials: log-sum-exp = max + log(sum). Rows lie as in tiles; a panel's columns begin
// at panel · slots.
struct LossSums {
    float *row_max, *row_sum, *column_max, *column_sum;
    float* partner;  // [rows] S of each row with its partner
};

// Inputs of `backward` of a pair of blocks, and the gradients it adds to.
struct LossGradient {
    const float* row_lse;     // in whole tiles
    const float* column_lse;  // in whole panels
    float factor;             // da = factor · P · b, db = factor · Pᵀ · a
    float *da, *db;           // [rows][embed], [columns][embed]
};

struct LossKernels {
    int lanes;
    int tile, panel;  // rows in them
    int slots;
    int max_tiles, max_panels;  // of a block
    void (*forward)(const LossOperands&, const LossBlock&, const LossSums&);
    // Returns Σ P · (a·b). scratch: a float for each row and column of the block, missing ones included.
    double (*backward)(const LossOperands&, const LossBlock&, const LossGradient&, float* scratch);
    void (*exponentials)(const float* x, size_t count, float* out);
};

struct RasterKernels {
    void (*pack_tiles)(const raster::Block&, const raster::Encoding&, const raster::Tiles&,
                       raster::QuantisationStatistics&);
    void (*halve)(const raster::Block&, float* out, std::ptrdiff_t out_row_stride);
};

// Training keeps tiles of points, [tile][unit][tile_points], the batch rounded up to whole tiles.
struct TrainKernels {
    int tile_points;
    int block_tiles;  // that forward and pre_activation_gradients take at most

    void (*forward)(const Network&, const double* lonlat, int count, uint64_t row, const Dropout&,
                    float* const* saved, float* out, ptrdiff_t stride, float* scratch);
    size_t (*forward_scratch)(const Network&);
    void (*pre_activation_gradients)(const TransposedNetwork&, const float* gradient, ptrdiff_t stride,
                                     int count, const float* const* saved, const Dropout&, float* embedding,
                                     float* const* dz, float* const* sine);
    void (*first_layer_gradients)(const HarmonicBasis&, int chunk, const double* lonlat, int count,
                                  const float* dz, int padded, int begin, int end, const LayerGradient&,
                                  float* scratch);
    size_t (*first_layer_scratch)(const HarmonicBasis&);
    void (*later_layer_gradients)(const float* dz, int outputs_padded, const float* h, int inputs_padded,
                                  int inputs, int count, int begin, int end, const LayerGradient&);
};

struct ResampleKernels {
    // Neighbouring pixels of a row; `to` points at the first.
    void (*pixels)(const Lattice&, int order, const Stencil& row, const Stencil* columns, int count,
                   const PixelStore& to);
    // Single points; the i-th is row index[i] of `to`, whose column stride means nothing.
    void (*points)(const Lattice&, int order, const Stencil* rows, const Stencil* columns, int count,
                   const std::int64_t* index, const PixelStore& to);
    void (*copy_streaming)(const char* from, size_t bytes, char* to);  // past the caches
};

struct Kernels {
    const char* name;
    int lanes;         // floats in a SIMD vector
    int units;         // outputs in a panel of a sine layer
    int wide_panel;    // outputs in a panel of the last layer; the last one may be `lanes` wide
    int block_points;  // points that `points` takes at most
    int block_tiles;   // tiles that a block holds at most

    void (*harmonics)(const LegendreTable&, const double* lonlat, int count, double* out, double* scratch);
    size_t (*harmonics_scratch)(const LegendreTable&);
    void (*points)(const Network&, const double* lonlat, int count, float* out, ptrdiff_t stride,
                   float* scratch);
    size_t (*points_scratch)(const Network&);
    void (*fourier_basis)(int degrees, const double* cosine_sine, int vectors, float* basis);
    void (*row_coefficients)(const Network&, const RowGroup&, float* scratch);
    size_t (*row_coefficients_scratch)(const Network&);
    void (*encode_pixels)(const Network&, const float* row_coefficients, const ColumnTile* tiles, int count,
                          float* out, ptrdiff_t stride, float* scratch);
    size_t (*encode_pixels_scratch)(const Network&);
    const RasterKernels* raster;
    const TrainKernels* train;
    const LossKernels* loss;
    const ResampleKernels* resample;
};

// The instruction sets that this processor runs, best first.
const std::vector<const Kernels*>& available_kernels();

// The table of that name, or the best one for nullptr; nullptr when this processor cannot run it.
const Kernels* find_kernels(const char* name);

}  // namespace satclip
