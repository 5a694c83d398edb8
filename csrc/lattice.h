// Resampling of a uniform lattice: separable Lagrange interpolation with an even number of nodes, 4 to 12, on
// each axis.
//
//     out[i, j] = Σ_b v_j[b] · t_i[first_j + b]      t_i[c] = Σ_a u_i[a] · lattice[first_i + a, c]
//
// t_i is computed column by column and slid along the row: on a raster finer than its lattice a column serves
// many pixels. Sums run in that order for any window of the raster, on the host and on GPUs.
#pragma once

#include <cmath>
#include <cstddef>

#include "host_device.h"

namespace satclip {

constexpr int kMinOrder = 4, kMaxOrder = 12;

// Nodes [first, first + order) and their weights; aligned, so that a GPU reads four weights at once.
struct alignas(16) Stencil {
    float weight[kMaxOrder];
    std::int32_t first;
};

// 1 / Π_{j≠k} (k − j) of Lagrange's polynomial k on nodes 0..order−1.
template <int Order>
struct Denominators {
    double inverse[Order];

    SATCLIP_HD constexpr Denominators() : inverse() {
        for (int k = 0; k < Order; ++k) {
            double product = 1.0;
            for (int j = 0; j < Order; ++j)
                if (j != k) product *= k - j;
            inverse[k] = 1.0 / product;
        }
    }
};

// Lagrange's polynomials at `position`, counted in nodes, which lies in the middle interval of its nodes. At
// a node they are exactly 0 and 1. Positions that are not finite give weights of NaN on the first nodes.
template <int Order>
SATCLIP_HD_INLINE Stencil stencil_of(double position) {
    constexpr Denominators<Order> denominators;
    Stencil stencil = {};
    const bool finite = position - position == 0.0;
    const double floor_position = std::floor(position);
    stencil.first = finite ? static_cast<std::int32_t>(floor_position) - Order / 2 + 1 : 0;
    const double u = finite ? (position - floor_position) + (Order / 2 - 1) : position - position;
    // Π_{j<k} (u − j) from below, then times Π_{j>k} (u − j) from above.
    double below[Order], product = 1.0;
    SATCLIP_UNROLL
    for (int k = 0; k < Order; ++k) {
        below[k] = product * denominators.inverse[k];
        product *= u - k;
    }
    product = 1.0;
    SATCLIP_UNROLL
    for (int k = Order - 1; k >= 0; --k) {
        stencil.weight[k] = static_cast<float>(below[k] * product);
        product *= u - k;
    }
    return stencil;
}

SATCLIP_HD_INLINE Stencil stencil_at(double position, int order) {
    switch (order) {
        case 4:
            return stencil_of<4>(position);
        case 6:
            return stencil_of<6>(position);
        case 8:
            return stencil_of<8>(position);
        case 10:
            return stencil_of<10>(position);
        default:
            return stencil_of<12>(position);
    }
}

// Nodes (row, column, band); bands contiguous, strides in floats.
struct Lattice {
    const float* data;
    std::ptrdiff_t row_stride, column_stride;
    int bands;
};

template <class A, int Order, class Value>
SATCLIP_HD_INLINE typename A::Value weighted_sum(const float* weight, Value&& value) {
    typename A::Value sum = A::broadcast(weight[0]) * value(0);
    SATCLIP_UNROLL
    for (int k = 1; k < Order; ++k) sum = A::multiply_add(A::broadcast(weight[k]), value(k), sum);
    return sum;
}

// One row of the raster at a few neighbouring bands, those of an A::Value: put(j, value) for j < count.
// `nodes` points at the first of these bands at node (row.first, 0); load(p) reads them from p.
template <class A, int Order, class Load, class Put>
SATCLIP_HD_INLINE void resample_run(const Lattice& lattice, const float* nodes, const Stencil& row,
                                    const Stencil* columns, int count, Load&& load, Put&& put) {
    typename A::Value tap[Order];
    SATCLIP_UNROLL
    for (int b = 0; b < Order; ++b) tap[b] = A::broadcast(0.0f);
    const auto column_sum = [&](std::ptrdiff_t column) {
        const float* column_nodes = nodes + column * lattice.column_stride;
        return weighted_sum<A, Order>(row.weight,
                                      [&](int a) { return load(column_nodes + a * lattice.row_stride); });
    };
    std::int32_t first = columns[0].first - Order;  // no node of the first stencil is in tap
    for (int j = 0; j < count; ++j) {
        const Stencil& column = columns[j];
        if (column.first < first || column.first - first > Order) first = column.first - Order;
        for (; first < column.first; ++first) {
            SATCLIP_UNROLL
            for (int b = 0; b + 1 < Order; ++b) tap[b] = tap[b + 1];
            tap[Order - 1] = column_sum(first + Order);
        }
        put(j, weighted_sum<A, Order>(column.weight, [&](int b) { return tap[b]; }));
    }
}

}  // namespace satclip
