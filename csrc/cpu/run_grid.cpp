// Embeddings of product grids: mirrored rows and columns are grouped, groups are cut for threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "harmonics.h"
#include "memory.h"
#include "parallel.h"
#include "rounding.h"
#include "satclip.h"

namespace satclip {

namespace {

// Longitudes folded into [0°, 90°], those with the same mirrors side by side, in tiles of up to three
// vectors.
struct Columns {
    struct Distinct {
        double folded;
        int32_t column[4];  // of member q, −1 where there is none
        int members;
    };
    std::vector<ColumnTile> tiles;
    std::vector<std::vector<int32_t>> columns;
    std::vector<std::shared_ptr<float>> fourier_bases;
    std::vector<size_t> block_begin;  // tiles of a block have at most block_tiles members in all

    Columns(const Kernels& kernels, int degrees, const double* lon, size_t count);

  private:
    static std::vector<Distinct> distinct(const double* lon, size_t count);
};

std::vector<Columns::Distinct> Columns::distinct(const double* lon, size_t count) {
    struct Entry {
        double folded;
        int member;
        int32_t column;
    };
    std::vector<Entry> entries(count);
    for (size_t i = 0; i < count; ++i) {
        const double reduced = std::remainder(lon[i], 360.0), distance = std::fabs(reduced);  // exact
        const bool west = std::signbit(reduced), far = distance > 90.0;
        entries[i] = {far ? 180.0 - distance : distance, (west ? 1 : 0) + (far ? 2 : 0),
                      static_cast<int32_t>(i)};
        if (!std::isfinite(lon[i])) entries[i] = {std::nan(""), 0, static_cast<int32_t>(i)};
    }
    const auto key = [](const Entry& e) { return std::isnan(e.folded) ? 1e9 : e.folded; };
    std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
        return key(a) != key(b) ? key(a) < key(b) : a.column < b.column;
    });
    std::vector<Distinct> folded_longitudes;
    for (const Entry& e : entries) {
        const bool joins = !folded_longitudes.empty() && folded_longitudes.back().folded == e.folded &&
                           !(folded_longitudes.back().members >> e.member & 1);
        if (!joins) folded_longitudes.push_back({e.folded, {-1, -1, -1, -1}, 0});
        folded_longitudes.back().column[e.member] = e.column;
        folded_longitudes.back().members |= 1 << e.member;
    }
    std::stable_sort(folded_longitudes.begin(), folded_longitudes.end(),
                     [](const Distinct& a, const Distinct& b) { return a.members < b.members; });
    return folded_longitudes;
}

Columns::Columns(const Kernels& kernels, int degrees, const double* lon, size_t count) {
    const std::vector<Distinct> longitudes = distinct(lon, count);
    const size_t lanes = kernels.lanes;
    int members_in_block = kernels.block_tiles;
    for (size_t begin = 0; begin < longitudes.size();) {
        size_t end = begin + 1;
        while (end < longitudes.size() && end - begin < 3 * lanes &&
               longitudes[end].members == longitudes[begin].members)
            ++end;
        const size_t vectors = ceil_div(end - begin, lanes), width = vectors * lanes;
        std::vector<int32_t> column(4 * width, -1);
        std::vector<double> cosine_sine(2 * width, 0.0);
        for (size_t i = begin; i < end; ++i) {
            const SineCosine of = sincos_degrees(longitudes[i].folded);
            cosine_sine[i - begin] = of.cosine;
            cosine_sine[width + i - begin] = of.sine;
            for (int q = 0; q < 4; ++q) column[q * width + i - begin] = longitudes[i].column[q];
        }
        fourier_bases.push_back(aligned_floats(static_cast<size_t>(2 * degrees - 1) * width));
        kernels.fourier_basis(degrees, cosine_sine.data(), static_cast<int>(vectors),
                              fourier_bases.back().get());
        columns.push_back(std::move(column));
        int members = 0;
        for (int q = 0; q < 4; ++q) members += longitudes[begin].members >> q & 1;
        if (members_in_block + members > kernels.block_tiles) {
            block_begin.push_back(tiles.size());
            members_in_block = 0;
        }
        members_in_block += members;
        tiles.push_back({static_cast<int>(vectors), longitudes[begin].members, fourier_bases.back().get(),
                         columns.back().data()});
        begin = end;
    }
    block_begin.push_back(tiles.size());
}

// Distinct |latitudes|, and the row of each sign that has it.
struct Latitude {
    double distance;
    ptrdiff_t south, north;
};

std::vector<Latitude> pair_rows(const double* lat, size_t rows) {
    std::vector<Latitude> latitudes;
    latitudes.reserve(rows);
    for (size_t i = 0; i < rows; ++i) {
        const bool north = lat[i] > 0;
        latitudes.push_back({std::fabs(lat[i]), north ? -1 : static_cast<ptrdiff_t>(i),
                             north ? static_cast<ptrdiff_t>(i) : -1});
    }
    const auto key = [](const Latitude& l) { return std::isfinite(l.distance) ? l.distance : 1e9; };
    std::stable_sort(latitudes.begin(), latitudes.end(),
                     [&](const Latitude& a, const Latitude& b) { return key(a) < key(b); });
    size_t distinct = 0;
    for (const Latitude& l : latitudes) {
        Latitude* before = distinct ? &latitudes[distinct - 1] : nullptr;
        if (before && before->distance == l.distance && l.north >= 0 && before->north < 0) {
            before->north = l.north;
        } else if (before && before->distance == l.distance && l.south >= 0 && before->south < 0) {
            before->south = l.south;
        } else {
            latitudes[distinct++] = l;
        }
    }
    latitudes.resize(distinct);
    return latitudes;
}

}  // namespace

bool encode_grid(const NetworkData& network, const double* lat, size_t rows, const double* lon, size_t count,
                 float* out, ptrdiff_t row_stride, ptrdiff_t column_stride, const Control& control) {
    if (rows == 0 || count == 0) return true;
    const Kernels& kernels = network.kernels();
    const Network& net = network.view();
    const Columns columns(kernels, net.basis.legendre.degrees, lon, count);
    const std::vector<Latitude> latitudes = pair_rows(lat, rows);

    // An item is a group of rows (a vector of them shares one contraction over l) and a run of column blocks.
    // Wide calls with few rows are cut along the columns too, so that every thread has some.
    const size_t threads = static_cast<size_t>(std::max(1, control.threads));
    const size_t target_items = 4 * threads;
    const size_t in_group = std::clamp<size_t>(latitudes.size() / target_items, 1, kernels.lanes);
    const size_t groups = ceil_div(latitudes.size(), in_group);
    const size_t blocks = columns.block_begin.size() - 1;
    // Each run contracts its rows anew, which costs a fifth of a block.
    size_t runs =
        threads == 1 ? 1 : std::clamp<size_t>(target_items / groups, 1, std::max<size_t>(1, blocks / 4));
    if (runs > threads) runs -= runs % threads;
    const size_t row_floats =
        static_cast<size_t>(net.layers[0].padded) * (2 * net.basis.legendre.degrees - 1);
    const size_t transient =
        std::max(kernels.row_coefficients_scratch(net), kernels.encode_pixels_scratch(net));

    return run_parallel(
        groups * runs, transient + 2 * in_group * row_floats, control,
        [&](size_t item, float* scratch, KeepRunning& keep_running) {
            const size_t begin = item / runs * in_group, size = std::min(in_group, latitudes.size() - begin);
            constexpr size_t kMaxLanes = 64;  // no instruction set has more lanes
            double sine[kMaxLanes], cosine[kMaxLanes];
            float *south[kMaxLanes], *north[kMaxLanes];
            float* next = scratch + transient;
            for (size_t i = 0; i < size; ++i) {
                const Latitude& latitude = latitudes[begin + i];
                const SineCosine of = sincos_degrees(latitude.distance);
                sine[i] = of.sine;
                cosine[i] = of.cosine;
                south[i] = latitude.south < 0 ? nullptr : (next += row_floats) - row_floats;
                north[i] = latitude.north < 0 ? nullptr : (next += row_floats) - row_floats;
            }
            kernels.row_coefficients(net, {static_cast<int>(size), sine, cosine, south, north}, scratch);
            const size_t first = blocks * (item % runs) / runs, end = blocks * (item % runs + 1) / runs;
            for (size_t i = 0; i < size; ++i)
                for (int side = 0; side < 2; ++side) {
                    const float* row_coefficients = side ? north[i] : south[i];
                    if (row_coefficients == nullptr) continue;
                    float* to =
                        out + (side ? latitudes[begin + i].north : latitudes[begin + i].south) * row_stride;
                    for (size_t b = first; b < end && keep_running(); ++b)
                        kernels.encode_pixels(
                            net, row_coefficients, columns.tiles.data() + columns.block_begin[b],
                            static_cast<int>(columns.block_begin[b + 1] - columns.block_begin[b]), to,
                            column_stride, scratch);
                }
        });
}

}  // namespace satclip
