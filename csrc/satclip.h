// The whole compiled interface of the CPU core: plain pointers and sizes, no Python, no files.
//
// A network is packed once for one instruction set (`NetworkData`) and evaluated at any list of places
// (`encode`) or on the product of latitudes and longitudes (`encode_grid`). No state outlives a call but the
// packed weights, which are never written after they are made, so any number of threads may share them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/raster.h"
#include "lattice.h"
#include "store.h"

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

// The harmonics of degree 0..L−1 and how they are cut into chunks of whole orders.
struct Basis {
    LegendreTable legendre;
    int chunks;
    const int* chunk_order;  // [chunks + 1] first order m of each chunk
    const int* chunk_input;  // [chunks + 1] first input of each chunk
};

struct Network {
    Basis basis;
    int hidden;                 // sine layers, the first included
    const PackedLayer* layers;  // [hidden + 1]
    int widest;                 // most padded outputs of a sine layer
};

// Later layers turned round, for gradients: layer i takes the outputs of layer i + 1 to its inputs.
struct BackNetwork {
    int hidden;
    const PackedLayer* layers;  // [hidden]
};

// Pre-activations whose random word is below `threshold` are dropped, the others multiplied by `scale`.
struct Dropout {
    uint32_t threshold;
    float scale;
    uint64_t seed;
};

// Where the gradients of a layer are added: (outputs, inputs) row-major and (outputs).
struct LayerGradient {
    float* weight;
    float* bias;
};

// Where the results of one tile of lanes go: out + index[lane] * stride, nowhere for index < 0.
struct Target {
    float* out;
    ptrdiff_t stride;
    const int32_t* index;
};

// Up to 3 vectors of distinct longitudes, folded into [0°, 90°], and the columns that mirror them.
// Member q holds longitude: q & 1 → negative; q & 2 → 180° − folded.
struct ColumnTile {
    int vectors;
    int members;            // bit q set when member q occurs in this tile
    const float* trig;      // [2L−1][vectors·lanes]: cos even m, cos odd m, sin odd m, sin even m
    const int32_t* column;  // [4][vectors·lanes], −1 where there is none
};

// Up to `lanes` distinct |latitudes| with the rows that have them.
struct RowGroup {
    int count;
    const double* sine;  // sin |lat| = |x|
    const double* cosine;
    float* const* south;  // per lane: where the Fourier panels of the row with lat ≤ 0 go, or null
    float* const* north;
};

// The two sides of the contrastive loss: S[i][j] = scale · a[i] · b[j], i < rows, j < columns; row i's
// partner is column offset + i. Packed twice: along the elements for S and along the rows for gradients.
struct LossOperands {
    int rows, columns;
    int embed;  // elements of a row
    float scale;
    ptrdiff_t offset;
    const float *a_tiles, *b_panels;   // [tile or panel][element][row within it]
    const float *a_chunks, *b_chunks;  // [chunk of a tile's width of elements][row][element within it]
};

// Some tiles of a's rows and some panels of b's.
struct LossBlock {
    int tile, tiles;
    int panel, panels;
};

// Running sums of exponentials: log-sum-exp = top + log(sum). Rows lie as in tiles; a panel's columns begin
// at panel · slots.
struct LossSums {
    float *row_top, *row_sum, *column_top, *column_sum;
    float* partner;  // [rows] S of each row with its partner
};

// What `backward` of a pair of blocks reads and adds to.
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
    int most_tiles, most_panels;  // of a block
    void (*forward)(const LossOperands&, const LossBlock&, const LossSums&);
    // Returns Σ P · (a·b). scratch: a float for each row and column of the block, missing ones included.
    double (*backward)(const LossOperands&, const LossBlock&, const LossGradient&, float* scratch);
    void (*exponentials)(const float* x, size_t count, float* out);
};

struct RasterKernels {
    void (*pack_tiles)(const raster::Block&, const raster::Encoding&, const raster::Tiles&, raster::Tally&);
    void (*halve)(const raster::Block&, float* out, std::ptrdiff_t out_row_stride);
};

// Tiles of places as training keeps them: [tile][unit][tile_places], the batch rounded up to whole tiles.
struct TrainKernels {
    int tile_places;
    int block_tiles;  // that forward and inner take at most

    void (*forward)(const Network&, const double* lonlat, int count, uint64_t row, const Dropout&,
                    float* const* saved, float* out, ptrdiff_t stride, float* scratch);
    size_t (*forward_scratch)(const Network&);
    void (*inner)(const BackNetwork&, const float* gradient, ptrdiff_t stride, int count,
                  const float* const* saved, const Dropout&, float* embedding, float* const* dz,
                  float* const* sine);
    void (*first)(const Basis&, int chunk, const double* lonlat, int count, const float* dz, int padded,
                  int begin, int end, const LayerGradient&, float* scratch);
    size_t (*first_scratch)(const Basis&);
    void (*later)(const float* dz, int outputs_padded, const float* h, int inputs_padded, int inputs,
                  int count, int begin, int end, const LayerGradient&);
};

struct LatticeKernels {
    // Neighbouring pixels of a row; `to` points at the first.
    void (*run)(const Lattice&, int order, const Stencil& row, const Stencil* columns, int count,
                const Store& to);
    // Single places; the i-th is row index[i] of `to`, whose column stride means nothing.
    void (*places)(const Lattice&, int order, const Stencil* rows, const Stencil* columns, int count,
                   const std::int64_t* index, const Store& to);
    void (*copy)(const char* from, size_t bytes, char* to);  // past the caches
};

struct Kernels {
    const char* name;
    int lanes;         // floats in a vector
    int units;         // outputs in a panel of a sine layer
    int wide_panel;    // outputs in a panel of the last layer; the last one may be `lanes` wide
    int block_places;  // places that points_block takes at most
    int block_tiles;   // tiles of lanes that a block holds at most

    void (*harmonics)(const LegendreTable&, const double* lonlat, int count, double* out, double* scratch);
    size_t (*harmonics_scratch)(const LegendreTable&);
    void (*points)(const Network&, const double* lonlat, int count, float* out, ptrdiff_t stride,
                   float* scratch);
    size_t (*points_scratch)(const Network&);
    void (*grid_trig)(int degrees, const double* cosine_sine, int vectors, float* trig);
    void (*grid_rows)(const Network&, const RowGroup&, float* scratch);
    size_t (*grid_rows_scratch)(const Network&);
    void (*grid_columns)(const Network&, const float* panels, const ColumnTile* tiles, int count, float* out,
                         ptrdiff_t stride, float* scratch);
    size_t (*grid_columns_scratch)(const Network&);
    const RasterKernels* raster;
    const TrainKernels* train;
    const LossKernels* loss;
    const LatticeKernels* lattice;
};

// The instruction sets that this processor runs, best first.
const std::vector<const Kernels*>& available_kernels();

// The table of that name, or the best one for nullptr; nullptr when this processor cannot run it.
const Kernels* find_kernels(const char* name);

// One dense layer as the caller has it: weight (outputs, inputs) row-major, bias (outputs).
struct DenseLayer {
    const float* weight;
    const float* bias;
    int inputs;
    int outputs;
};

class BasisData {
  public:
    explicit BasisData(int degrees);
    Basis view() const;

  private:
    int degrees_;
    std::vector<double> legendre_;
    std::vector<int> chunk_order_, chunk_input_;
};

// Owns the packed copy of a network for one instruction set. The first layer's inputs are orthonormal real
// harmonics in the order l² + l + m; every layer but the last is followed by a sine.
class NetworkData {
  public:
    // threads: that pack the first layer, the only large one.
    NetworkData(const Kernels& kernels, int degrees, const std::vector<DenseLayer>& layers, int threads = 1);
    NetworkData(const NetworkData&) = delete;
    const Network& view() const { return view_; }
    const Kernels& kernels() const { return kernels_; }
    int outputs() const { return layers_.back().outputs; }

  private:
    void pack_first(const DenseLayer& from, int panel, int padded, float* weight) const;

    const Kernels& kernels_;
    Network view_;
    std::vector<std::shared_ptr<float>> memory_;
    BasisData basis_;
    std::vector<PackedLayer> layers_;
};

// How a call is run. `interrupted` is polled by the calling thread between blocks of work (milliseconds
// each).
struct Control {
    int threads = 1;
    bool (*interrupted)(void*) = nullptr;
    void* context = nullptr;
};

// All return false when interrupted, the output then being incomplete. Coordinates are degrees; latitudes lie
// within ±90 (the caller has checked) or are not finite, which gives NaN.
bool harmonics(const Kernels&, int degrees, const double* lonlat, size_t count, double* out, const Control&);
bool encode(const NetworkData&, const double* lonlat, size_t count, float* out, ptrdiff_t stride,
            const Control&);

// Floats that training keeps of a batch: pre-activations of all hidden layers.
size_t train_saved(const Kernels&, const std::vector<DenseLayer>&, size_t count);
bool train_forward(const NetworkData&, const double* lonlat, size_t count, const Dropout&, float* out,
                   ptrdiff_t stride, float* saved, const Control&);
// Gradients of all layers, written; of the first layer's pre-activations (count, outputs) unless `first` is
// null.
bool train_backward(const Kernels&, int degrees, const std::vector<DenseLayer>&, const double* lonlat,
                    size_t count, const float* saved, const Dropout&, const float* gradient, ptrdiff_t stride,
                    const std::vector<LayerGradient>&, float* first, const Control&);

bool encode_grid(const NetworkData&, const double* lat, size_t rows, const double* lon, size_t columns,
                 float* out, ptrdiff_t row_stride, ptrdiff_t column_stride, const Control&);

// Stencils of positions on an axis of `nodes` nodes, counted in nodes: (position − origin) / spacing. Returns
// the first position whose stencil does not lie within the nodes, or `count`; NaN fits.
size_t stencils(const double* positions, size_t count, double origin, double spacing, int order, size_t nodes,
                Stencil* out);
// Resamples a lattice on the product of rows and columns; see lattice.h.
bool resample(const Kernels&, const Lattice&, int order, const std::vector<Stencil>& rows,
              const std::vector<Stencil>& columns, const Store& to, const Control&);

// Positions (row, column) on a lattice of rows × columns nodes, counted in nodes after (position − origin) /
// spacing.
struct Positions {
    const double *rows, *columns;
    size_t count;
    double row_origin, row_spacing, column_origin, column_spacing;
    size_t row_nodes, column_nodes;
    const std::int64_t* index;  // where each goes in the output, of `outputs` places
    size_t outputs;
};
// Resamples single places. `misplaced` is the first whose stencil does not lie within the nodes, or the
// count; then nothing of its block is written. NaN gives NaN.
bool resample_places(const Kernels&, const Lattice&, int order, const Positions&, const Store& to,
                     size_t& misplaced, const Control&);

// A contrastive loss, see LossOperands: a [rows][embed], b [columns][embed].
struct Contrast {
    const float *a, *b;
    size_t rows, columns, embed;
    double scale;
    size_t offset;  // row i's partner is column offset + i
};

// Both return false when interrupted. Memory beyond the results is proportional to the operands, never to
// rows × columns. The order of all sums follows from the sizes and the instruction set alone.
//
// row_lse[i] = log Σ_j exp S_ij, column_lse[j] = log Σ_i exp S_ij, partner[i] = S_i,offset+i
bool loss_forward(const Kernels&, const Contrast&, float* row_lse, float* column_lse, float* partner,
                  const Control&);
// With dS_ij = factor · (exp(S_ij − row_lse_i) + exp(S_ij − column_lse_j) − 2·[j = offset + i]):
// da = scale · dS · b, db = scale · dSᵀ · a, *dscale = Σ dS_ij (a_i · b_j). The log-sum-exps may be those of
// more rows and columns than the ones given.
bool loss_backward(const Kernels&, const Contrast&, const float* row_lse, const float* column_lse,
                   double factor, float* da, float* db, double* dscale, const Control&);

}  // namespace satclip
