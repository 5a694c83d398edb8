// Embeddings and harmonics of lists of points, cut into blocks for threads.
#include <algorithm>

#include "parallel.h"
#include "rounding.h"
#include "satclip.h"

namespace satclip {

bool harmonics(const Kernels& kernels, int degrees, const double* lonlat, size_t count, double* out,
               const Control& control) {
    const HarmonicBasisData basis(degrees);
    const LegendreTable view = basis.view().legendre;
    const size_t block = kernels.block_points, features = static_cast<size_t>(degrees) * degrees;
    return run_parallel(ceil_div(count, block), 2 * kernels.harmonics_scratch(view), control,
                        [&](size_t item, float* scratch, KeepRunning&) {
                            const size_t begin = item * block;
                            kernels.harmonics(view, lonlat + 2 * begin,
                                              static_cast<int>(std::min(block, count - begin)),
                                              out + begin * features, reinterpret_cast<double*>(scratch));
                        });
}

bool encode(const NetworkData& network, const double* lonlat, size_t count, float* out, ptrdiff_t stride,
            const Control& control) {
    const Kernels& kernels = network.kernels();
    // Few points: blocks small enough that every thread has one.
    const size_t lanes = kernels.lanes, share = (count + control.threads - 1) / std::max(1, control.threads);
    const size_t block = std::clamp(round_up(share, lanes), lanes, static_cast<size_t>(kernels.block_points));
    return run_parallel(ceil_div(count, block), kernels.points_scratch(network.view()), control,
                        [&](size_t item, float* scratch, KeepRunning&) {
                            const size_t begin = item * block;
                            kernels.points(network.view(), lonlat + 2 * begin,
                                           static_cast<int>(std::min(block, count - begin)),
                                           out + static_cast<ptrdiff_t>(begin) * stride, stride, scratch);
                        });
}

}  // namespace satclip
