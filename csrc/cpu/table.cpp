// The table of kernels of one instruction set.
#include "gemm.h"
#include "satclip.h"

#define STRINGIFY(x) #x
#define NAME_OF(x) STRINGIFY(x)

namespace satclip::SATCLIP_ISA {

void harmonics(const LegendreTable&, const double*, int, double*, double*);
size_t harmonics_scratch(const LegendreTable&);
void points(const Network&, const double*, int, float*, ptrdiff_t, float*);
size_t points_scratch(const Network&);
void grid_trig(int, const double*, int, float*);
void grid_rows(const Network&, const RowGroup&, float*);
size_t grid_rows_scratch(const Network&);
void grid_columns(const Network&, const float*, const ColumnTile*, int, float*, ptrdiff_t, float*);
size_t grid_columns_scratch(const Network&);

extern const RasterKernels raster_kernels;
extern const TrainKernels train_kernels;
extern const LossKernels loss_kernels;
extern const LatticeKernels lattice_kernels;
extern const Kernels kernels;
const Kernels kernels = {
    NAME_OF(SATCLIP_ISA),
    kLanes,
    kUnits,
    kWide,
    kBlockTiles * kTile,
    kBlockTiles,
    harmonics,
    harmonics_scratch,
    points,
    points_scratch,
    grid_trig,
    grid_rows,
    grid_rows_scratch,
    grid_columns,
    grid_columns_scratch,
    &raster_kernels,
    &train_kernels,
    &loss_kernels,
    &lattice_kernels,
};

}  // namespace satclip::SATCLIP_ISA
