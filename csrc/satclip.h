// The whole compiled interface of the CPU core: plain pointers and sizes, no Python, no files.
//
// A network is packed once for one instruction set (`NetworkData`) and evaluated at any list of points
// (`encode`) or on the product of latitudes and longitudes (`encode_grid`). No state outlives a call but the
// packed weights, which are never written after they are made, so any number of threads may share them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "lattice.h"
#include "quantise.h"

namespace satclip {

// One dense layer as the caller has it: weight (outputs, inputs) row-major, bias (outputs).
struct DenseLayer {
    const float* weight;
    const float* bias;
    int inputs;
    int outputs;
};

class HarmonicBasisData {
  public:
    explicit HarmonicBasisData(int degrees);
    HarmonicBasis view() const;

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
    HarmonicBasisData basis_;
    std::vector<PackedLayer> layers_;
};

// Threads of a call, and its interruption: `interrupted` is polled by the calling thread between blocks of
// work (milliseconds each).
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

// Floats that training saves of a batch: pre-activations of all hidden layers.
size_t train_saved(const Kernels&, const std::vector<DenseLayer>&, size_t count);
bool train_forward(const NetworkData&, const double* lonlat, size_t count, const Dropout&, float* out,
                   ptrdiff_t stride, float* saved, const Control&);
// Gradients of all layers, written; of the first layer's pre-activations (count, outputs) unless
// `first_gradient` is null.
bool train_backward(const Kernels&, int degrees, const std::vector<DenseLayer>&, const double* lonlat,
                    size_t count, const float* saved, const Dropout&, const float* gradient, ptrdiff_t stride,
                    const std::vector<LayerGradient>&, float* first_gradient, const Control&);

bool encode_grid(const NetworkData&, const double* lat, size_t rows, const double* lon, size_t columns,
                 float* out, ptrdiff_t row_stride, ptrdiff_t column_stride, const Control&);

// Stencils of positions on an axis of `nodes` nodes, counted in nodes: (position − origin) / spacing. Returns
// the first position whose stencil does not lie within the nodes, or `count`; NaN fits.
size_t stencils(const double* positions, size_t count, double origin, double spacing, int order, size_t nodes,
                Stencil* out);
// Resamples a lattice on the product of rows and columns; see lattice.h.
bool resample(const Kernels&, const Lattice&, int order, const std::vector<Stencil>& rows,
              const std::vector<Stencil>& columns, const PixelStore& to, const Control&);

// Positions (row, column) on a lattice of rows × columns nodes, counted in nodes after (position − origin) /
// spacing.
struct Positions {
    const double *rows, *columns;
    size_t count;
    double row_origin, row_spacing, column_origin, column_spacing;
    size_t row_nodes, column_nodes;
    const std::int64_t* index;  // row of the output for each position, below `outputs`
    size_t outputs;
};
// Resamples single points. `first_outside` is the first whose stencil does not lie within the nodes, or the
// count; then nothing of its block is written. NaN gives NaN.
bool resample_points(const Kernels&, const Lattice&, int order, const Positions&, const PixelStore& to,
                     size_t& first_outside, const Control&);

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
