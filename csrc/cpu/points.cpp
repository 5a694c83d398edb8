// Scattered places: harmonics of a chunk of orders are made in cache and multiplied into the first layer's
// sums at once, so the L² harmonics of a place never exist together; then the later layers, block by block.
#include "gemm.h"
#include "legendre.h"

namespace satclip::SATCLIP_ISA {

// Lanes beyond `count` repeat the north pole's values, which are harmless. Not-finite coordinates become NaN
// throughout.
static void start_orders(const OrderState& state, const double* lonlat, int count, int lanes) {
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
SATCLIP_INLINE void write_order(const LegendreTable& table, const OrderState& state, int m, int at, float* x,
                                int width) {
    const Doubles cosine = load(state.cosine + at), sine = load(state.sine + at);
    const Doubles first = load(state.sectoral + at) * all(m ? kSqrt2 : 1.0);
    const int sines = table.degrees - m, odd = even_count(table.degrees, m);
    const TinyHarmonics tiny = TinyHarmonics::of(first);
    legendre_order(table, m, load(state.x + at), first, [&](int l, Doubles p) {
        p = tiny.cleared(p);
        const int step = l - m;
        float* to = x + static_cast<size_t>((step & 1 ? odd : 0) + step / 2) * width;
        store_narrowed(to, p * cosine);
        if (m) store_narrowed(to + static_cast<size_t>(sines) * width, p * sine);
    });
}

static int chunk_inputs(const Network& net, int chunk) {
    return net.chunk_input[chunk + 1] - net.chunk_input[chunk];
}

static size_t widest_chunk(const Network& net) {
    size_t most = 0;
    for (int c = 0; c < net.chunks; ++c)
        if (most < static_cast<size_t>(chunk_inputs(net, c))) most = chunk_inputs(net, c);
    return most;
}

constexpr int kBlockLanes = kBlockTiles * kTile;

size_t points_scratch(const Network& net) {
    return (widest_chunk(net) + 2 * static_cast<size_t>(net.widest) + 2 * kOrderStateRows) * kBlockLanes;
}

// count ≤ block_places
void points(const Network& net, const double* lonlat, int count, float* out, ptrdiff_t stride,
            float* scratch) {
    float* x = scratch;
    float* h[2] = {x + widest_chunk(net) * kBlockLanes, nullptr};
    h[1] = h[0] + static_cast<size_t>(net.widest) * kBlockLanes;
    const OrderState state = order_state(
        reinterpret_cast<double*>(h[1] + static_cast<size_t>(net.widest) * kBlockLanes), kBlockLanes);

    Activations first{}, spare{};
    int lane_of_tile[kBlockTiles] = {};
    int lanes = 0;
    for (int t = 0; lanes < count; ++t) {
        const int left = (count - lanes + kLanes - 1) / kLanes;
        const int vectors = left < 3 ? left : 3;
        first.tiles = spare.tiles = t + 1;
        first.vectors[t] = spare.vectors[t] = vectors;
        first.data[t] = h[0] + static_cast<size_t>(net.widest) * lanes;
        spare.data[t] = h[1] + static_cast<size_t>(net.widest) * lanes;
        lane_of_tile[t] = lanes;
        lanes += vectors * kLanes;
    }
    start_orders(state, lonlat, count, lanes);

    const PackedLayer& layer = net.layers[0];
    for (int c = 0; c < net.chunks; ++c) {
        const int inputs = chunk_inputs(net, c);
        for (int m = net.chunk_order[c]; m < net.chunk_order[c + 1]; ++m) {
            const int offset = input_of_order(net.legendre.degrees, m) - net.chunk_input[c];
            for (int t = 0; t < first.tiles; ++t) {
                const int width = first.vectors[t] * kLanes;
                float* to =
                    x + static_cast<size_t>(inputs) * lane_of_tile[t] + static_cast<size_t>(offset) * width;
                for (int v = 0; v < width; v += kHalf) {
                    const int at = lane_of_tile[t] + v;
                    if (m) next_order(state, m, at);
                    write_order(net.legendre, state, m, at, to + v, width);
                }
            }
        }
        const float* w = layer.weight + static_cast<size_t>(net.chunk_input[c]) * layer.padded;
        const bool last = c + 1 == net.chunks;
        for (int unit = 0; unit < layer.padded; unit += kUnits, w += static_cast<size_t>(inputs) * kUnits)
            for (int t = 0; t < first.tiles; ++t)
                kDensePanel[first.vectors[t]](
                    x + static_cast<size_t>(inputs) * lane_of_tile[t], w,
                    c == 0 ? layer.bias + unit : nullptr, inputs, last,
                    first.data[t] + static_cast<size_t>(unit) * first.vectors[t] * kLanes);
    }

    int32_t index[kBlockLanes];
    Target targets[kBlockTiles];
    for (int i = 0; i < lanes; ++i) index[i] = i < count ? i : -1;
    for (int t = 0; t < first.tiles; ++t) targets[t] = {out, stride, index + lane_of_tile[t]};
    later_layers(net, first, spare, targets);
}

size_t harmonics_scratch(const LegendreTable&) { return static_cast<size_t>(kOrderStateRows) * kBlockLanes; }

// out[place][l² + l + m] in float64.
void harmonics(const LegendreTable& table, const double* lonlat, int count, double* out, double* scratch) {
    const int degrees = table.degrees;
    const size_t features = static_cast<size_t>(degrees) * degrees;
    const OrderState state = order_state(scratch, kBlockLanes);
    start_orders(state, lonlat, count, kBlockLanes);
    for (int at = 0; at < count; at += kHalf) {
        const int places = count - at < kHalf ? count - at : kHalf;
        double* to = out + at * features;
        for (int m = 0; m < degrees; ++m) {
            if (m) next_order(state, m, at);
            // (−1)^m turns multiples of lon into multiples of φ = lon + 180°.
            const Doubles sign = all(m % 2 ? -1.0 : 1.0);
            const Doubles cosine = sign * load(state.cosine + at), sine = sign * load(state.sine + at);
            const Doubles first = load(state.sectoral + at) * all(m ? kSqrt2 : 1.0);
            legendre_order(table, m, load(state.x + at), first, [&](int l, Doubles p) {
                const Doubles c = p * cosine, s = p * sine;
                for (int i = 0; i < places; ++i) {
                    to[i * features + l * l + l + m] = c[i];
                    if (m) to[i * features + l * l + l - m] = s[i];
                }
            });
        }
    }
}

}  // namespace satclip::SATCLIP_ISA
