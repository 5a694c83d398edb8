// Table of the kernels of one instruction set.
#include "cpu/kernels.h"
#include "gemm.h"

#define STRINGIFY(x) #x
#define NAME_OF(x) STRINGIFY(x)

namespace satclip::SATCLIP_ISA {

void harmonics(const LegendreTable&, const double*, int, double*, double*);
size_t harmonics_scratch(const LegendreTable&);
void points(const Network&, const double*, int, float*, ptrdiff_t, float*);
size_t points_scratch(const Network&);
void fourier_basis(int, const double*, int, float*);
void row_coefficients(const Network&, const RowGroup&, float*);
size_t row_coefficients_scratch(const Network&);
void encode_pixels(const Network&, const float*, const ColumnTile*, int, float*, ptrdiff_t, float*);
size_t encode_pixels_scratch(const Network&);

extern const RasterKernels raster_kernels;
extern const TrainKernels train_kernels;
extern const LossKernels loss_kernels;
extern const ResampleKernels resample_kernels;
extern const Kernels kernels;
const Kernels kernels = {
    NAME_OF(SATCLIP_ISA),
    kLanes,
    kUnits,
    kWidePanel,
    kBlockTiles * kTile,
    kBlockTiles,
    harmonics,
    harmonics_scratch,
    points,
    points_scratch,
    fourier_basis,
    row_coefficients,
    row_coefficients_scratch,
    encode_pixels,
    encode_pixels_scratch,
    &raster_kernels,
    &train_kernels,
    &loss_kernels,
    &resample_kernels,
};

}  // namespace satclip::SATCLIP_ISA
