// Embeddings and harmonics of scattered points, block by block.
#include "point_harmonics.h"

namespace satclip::SATCLIP_ISA {

size_t points_scratch(const Network& net) {
    return (widest_chunk(net.basis) + 2 * static_cast<size_t>(net.widest) + 2 * kOrderStateRows) *
           kBlockLanes;
}

// count ≤ block_points
void points(const Network& net, const double* lonlat, int count, float* out, ptrdiff_t stride,
            float* scratch) {
    float* x = scratch;
    float* h[2] = {x + widest_chunk(net.basis) * kBlockLanes, nullptr};
    h[1] = h[0] + static_cast<size_t>(net.widest) * kBlockLanes;
    const OrderState state = order_state(
        reinterpret_cast<double*>(h[1] + static_cast<size_t>(net.widest) * kBlockLanes), kBlockLanes);

    Activations first{}, spare{};
    int lane_of_tile[kBlockTiles] = {};
    int lanes = 0;
    for (int t = 0; lanes < count; ++t) {
        const int remaining = (count - lanes + kLanes - 1) / kLanes;
        const int vectors = remaining < 3 ? remaining : 3;
        first.tiles = spare.tiles = t + 1;
        first.vectors[t] = spare.vectors[t] = vectors;
        first.data[t] = h[0] + static_cast<size_t>(net.widest) * lanes;
        spare.data[t] = h[1] + static_cast<size_t>(net.widest) * lanes;
        lane_of_tile[t] = lanes;
        lanes += vectors * kLanes;
    }
    start_orders(state, lonlat, count, lanes);

    first_layer(net, state, lane_of_tile, x, first, true);

    int32_t index[kBlockLanes];
    TileOutput tile_outputs[kBlockTiles];
    for (int i = 0; i < lanes; ++i) index[i] = i < count ? i : -1;
    for (int t = 0; t < first.tiles; ++t) tile_outputs[t] = {out, stride, index + lane_of_tile[t]};
    later_layers(net, first, spare, tile_outputs);
}

size_t harmonics_scratch(const LegendreTable&) { return static_cast<size_t>(kOrderStateRows) * kBlockLanes; }

// out[point][l² + l + m] in float64.
void harmonics(const LegendreTable& table, const double* lonlat, int count, double* out, double* scratch) {
    const int degrees = table.degrees;
    const size_t features = static_cast<size_t>(degrees) * degrees;
    const OrderState state = order_state(scratch, kBlockLanes);
    start_orders(state, lonlat, count, kBlockLanes);
    for (int lane = 0; lane < count; lane += kDoubleLanes) {
        const int points = count - lane < kDoubleLanes ? count - lane : kDoubleLanes;
        double* to = out + lane * features;
        for (int m = 0; m < degrees; ++m) {
            if (m) next_order(state, m, lane);
            // (−1)^m turns multiples of lon into multiples of φ = lon + 180°.
            const Doubles sign = broadcast(m % 2 ? -1.0 : 1.0);
            const Doubles cosine = sign * load(state.cosine + lane), sine = sign * load(state.sine + lane);
            const Doubles first = load(state.sectoral + lane) * broadcast(m ? kSqrt2 : 1.0);
            legendre_order(table, m, load(state.x + lane), first, [&](int l, Doubles p) {
                const Doubles c = p * cosine, s = p * sine;
                for (int i = 0; i < points; ++i) {
                    to[i * features + l * l + l + m] = c[i];
                    if (m) to[i * features + l * l + l - m] = s[i];
                }
            });
        }
    }
}

}  // namespace satclip::SATCLIP_ISA
