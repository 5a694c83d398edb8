// Harmonics of scattered points: those of a chunk of orders are computed in cache and multiplied into the
// first layer's sums at once, so the L² harmonics of a point never exist together.
#pragma once

#include "gemm.h"
#include "legendre.h"

namespace satclip::SATCLIP_ISA {

constexpr int kBlockLanes = kBlockTiles * kTile;

// Lanes beyond `count` repeat the north pole's values, which are harmless. Not-finite coordinates become NaN
// throughout.
SATCLIP_INLINE void start_orders(const OrderState& state, const double* lonlat, int count, int lanes) {
    for (int i = 0; i < lanes; ++i) {
        const double lon = i < count ? lonlat[2 * i] : 0.0, lat = i < count ? lonlat[2 * i + 1] : 90.0;
        const double poison = (lon - lon) + (lat - lat);  // 0, or NaN when one is not finite
        const SineCosine of_lat = sincos_degrees(lat), of_lon = sincos_degrees(lon);
        state.x[i] = -of_lat.sine + poison;
        state.s[i] = of_lat.cosine;
        state.cosine1[i] = of_lon.cosine;
        state.sine1[i] = of_lon.sine;
        state.cosine[i] = 1.0;
        state.sine[i] = 0.0;
        state.sectoral[i] = kLegendre00 + poison;
    }
}

// One vector of doubles, one order: cosine and sine harmonics to the chunk x[input][width].
SATCLIP_INLINE void write_order(const LegendreTable& table, const OrderState& state, int m, int lane,
                                float* x, int width) {
    const Doubles cosine = load(state.cosine + lane), sine = load(state.sine + lane);
    const Doubles first = load(state.sectoral + lane) * broadcast(m ? kSqrt2 : 1.0);
    const int sines = table.degrees - m, odd = even_count(table.degrees, m);
    const TinyHarmonics tiny = TinyHarmonics::of(first);
    legendre_order(table, m, load(state.x + lane), first, [&](int l, Doubles p) {
        p = tiny.cleared(p);
        const int step = l - m;
        float* to = x + static_cast<size_t>((step & 1 ? odd : 0) + step / 2) * width;
        store_narrowed(to, p * cosine);
        if (m) store_narrowed(to + static_cast<size_t>(sines) * width, p * sine);
    });
}

SATCLIP_INLINE int chunk_inputs(const HarmonicBasis& basis, int chunk) {
    return basis.chunk_input[chunk + 1] - basis.chunk_input[chunk];
}

SATCLIP_INLINE size_t widest_chunk(const HarmonicBasis& basis) {
    size_t widest = 0;
    for (int c = 0; c < basis.chunks; ++c)
        if (widest < static_cast<size_t>(chunk_inputs(basis, c))) widest = chunk_inputs(basis, c);
    return widest;
}

// Harmonics of chunk c for the lanes [lane, lane + width) → x[inputs of the chunk][width]. The orders' state
// is at the order before the chunk's first (or at 0) and ends at its last.
SATCLIP_INLINE void write_chunk(const HarmonicBasis& basis, const OrderState& state, int c, int lane,
                                int width, float* x) {
    for (int m = basis.chunk_order[c]; m < basis.chunk_order[c + 1]; ++m) {
        float* to =
            x + static_cast<size_t>(input_of_order(basis.legendre.degrees, m) - basis.chunk_input[c]) * width;
        for (int v = 0; v < width; v += kDoubleLanes) {
            if (m) next_order(state, m, lane + v);
            write_order(basis.legendre, state, m, lane + v, to + v, width);
        }
    }
}

// Sums of the first layer → out, through the sine when `sine`; x has room for a block's widest chunk.
SATCLIP_INLINE void first_layer(const Network& net, const OrderState& state, const int* lane_of_tile,
                                float* x, const Activations& out, bool sine) {
    const PackedLayer& layer = net.layers[0];
    for (int c = 0; c < net.basis.chunks; ++c) {
        const int inputs = chunk_inputs(net.basis, c);
        for (int t = 0; t < out.tiles; ++t)
            write_chunk(net.basis, state, c, lane_of_tile[t], out.vectors[t] * kLanes,
                        x + static_cast<size_t>(inputs) * lane_of_tile[t]);
        const float* w = layer.weight + static_cast<size_t>(net.basis.chunk_input[c]) * layer.padded;
        const bool last = c + 1 == net.basis.chunks;
        for (int unit = 0; unit < layer.padded; unit += kUnits, w += static_cast<size_t>(inputs) * kUnits)
            for (int t = 0; t < out.tiles; ++t)
                kDensePanel[out.vectors[t]](
                    x + static_cast<size_t>(inputs) * lane_of_tile[t], w,
                    c == 0 ? layer.bias + unit : nullptr, inputs, last && sine,
                    out.data[t] + static_cast<size_t>(unit) * out.vectors[t] * kLanes);
    }
}

}  // namespace satclip::SATCLIP_ISA
