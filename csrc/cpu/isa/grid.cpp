// Embeddings of product grids. On a row of constant latitude the first layer separates:
//     z(lon) = b + Σ_m cos(m·lon) · G_m^cos + sin(m·lon) · G_m^sin,      G_m[unit] = Σ_l P(l,m)(x) · W[unit,
//     (l, ±m)]
// so a row costs one contraction over l, and a pixel 2L−1 terms instead of L².
//
// Mirrors are used and, for the sake of determinism, always computed as mirrors, whether or not the other
// side is asked for: P(l,m)(−x) = (−1)^(l+m) P(l,m)(x), so G = even + odd in the south, even − odd in the
// north; and with A = longitude folded into [0°, 90°], cosines and sines of even and odd m change sign as a
// whole between A, −A, 180° − A and A − 180°, so four quarter sums make four pixels.
#include "gemm.h"
#include "legendre.h"

namespace satclip::SATCLIP_ISA {

// Number of terms in each quarter of a row's coefficients: cos even, cos odd, sin odd, sin even m.
struct Quarters {
    int cos_even, cos_odd, sin_even;  // sin odd has as many as cos odd
    SATCLIP_INLINE Quarters of(int degrees) {
        return {(degrees + 1) / 2, degrees / 2, (degrees + 1) / 2 - 1};
    }
    int term(int m, bool sine) const {
        if (!sine) return m % 2 ? cos_even + m / 2 : m / 2;
        return m % 2 ? cos_even + cos_odd + m / 2 : cos_even + 2 * cos_odd + m / 2 - 1;
    }
};

// cosine_sine[2][vectors·lanes] of the folded longitudes → basis[2L−1][vectors·lanes].
void fourier_basis(int degrees, const double* cosine_sine, int vectors, float* basis) {
    const int width = vectors * kLanes;
    const Quarters quarters = Quarters::of(degrees);
    for (int lane = 0; lane < width; lane += kDoubleLanes) {
        const Doubles c1 = load(cosine_sine + lane), s1 = load(cosine_sine + width + lane);
        Doubles c = broadcast(1.0) + (c1 - c1), s = s1 - s1;  // NaN stays NaN
        for (int m = 0; m < degrees; ++m) {
            if (m) {
                next_multiple(c, s, c1, s1);
                store_narrowed(basis + static_cast<size_t>(quarters.term(m, true)) * width + lane, s);
            }
            store_narrowed(basis + static_cast<size_t>(quarters.term(m, false)) * width + lane, c);
        }
    }
}

size_t row_coefficients_scratch(const Network& net) {
    return legendre_size(net.basis.legendre.degrees) * kLanes;
}

// P(l,m)(|x|) of every lane, in the packed order of the cosine inputs.
static void legendre_values(const LegendreTable& table, const RowGroup& rows, float* p) {
    alignas(64) double x[kLanes], s[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        x[i] = i < rows.count ? rows.sine[i] : 1.0;
        s[i] = i < rows.count ? rows.cosine[i] : 0.0;
    }
    for (int lane = 0; lane < kLanes; lane += kDoubleLanes) {
        const Doubles vx = load(x + lane), vs = load(s + lane);
        Doubles sectoral = broadcast(kLegendre00) + (vx - vx);
        for (int m = 0; m < table.degrees; ++m) {
            if (m) sectoral = flush_tiny(sectoral * (vs * broadcast(legendre_diagonal(m))));
            float* to = p + legendre_offset(table.degrees, m) * kLanes + lane;
            const int odd = even_count(table.degrees, m);
            const Doubles first = sectoral * broadcast(m ? kSqrt2 : 1.0);
            const TinyHarmonics tiny = TinyHarmonics::of(first);
            legendre_order(table, m, vx, first, [&](int l, Doubles value) {
                const int step = l - m;
                store_narrowed(to + static_cast<size_t>((step & 1 ? odd : 0) + step / 2) * kLanes,
                               tiny.cleared(value));
            });
        }
    }
}

// Fourier coefficients of the group's rows, packed as panels of a layer: [panel of units][2L−1][unit within
// the panel].
void row_coefficients(const Network& net, const RowGroup& rows, float* scratch) {
    const int degrees = net.basis.legendre.degrees, terms = 2 * degrees - 1;
    const PackedLayer& layer = net.layers[0];
    const Quarters quarters = Quarters::of(degrees);
    legendre_values(net.basis.legendre, rows, scratch);
    for (int c = 0; c < net.basis.chunks; ++c) {
        const int inputs = net.basis.chunk_input[c + 1] - net.basis.chunk_input[c];
        for (int unit = 0; unit < layer.padded; unit += kUnits) {
            const float* panel = layer.weight + static_cast<size_t>(net.basis.chunk_input[c]) * layer.padded +
                                 static_cast<size_t>(inputs) * unit;
            for (int m = net.basis.chunk_order[c]; m < net.basis.chunk_order[c + 1]; ++m) {
                const int all_l = degrees - m, even_l = even_count(degrees, m);
                const float* p = scratch + legendre_offset(degrees, m) * kLanes;
                for (int sine = 0; sine <= (m ? 1 : 0); ++sine) {
                    const float* w =
                        panel + static_cast<size_t>(input_of_order(degrees, m) - net.basis.chunk_input[c] +
                                                    (sine ? all_l : 0)) *
                                    kUnits;
                    Floats even[kUnits] = {}, odd[kUnits] = {};
                    accumulate<1>(p, w, even_l, even);
                    accumulate<1>(p + even_l * kLanes, w + even_l * kUnits, all_l - even_l, odd);
                    alignas(64) float south[kUnits][kLanes], north[kUnits][kLanes];
                    for (int u = 0; u < kUnits; ++u) {
                        store(south[u], even[u] + odd[u]);
                        store(north[u], even[u] - odd[u]);
                    }
                    const size_t offset = static_cast<size_t>(unit) * terms +
                                          static_cast<size_t>(quarters.term(m, sine)) * kUnits;
                    for (int i = 0; i < rows.count; ++i) {
                        if (rows.south[i])
                            for (int u = 0; u < kUnits; ++u) rows.south[i][offset + u] = south[u][i];
                        if (rows.north[i])
                            for (int u = 0; u < kUnits; ++u) rows.north[i][offset + u] = north[u][i];
                    }
                }
            }
        }
    }
}

// One panel of units at one tile of folded longitudes: quarter sums, their mirrors, bias and sine, into each
// member's tile.
template <int R>
static void synthesise(const Quarters& quarters, const float* basis, const float* w, const float* bias,
                       int members, float* const* to) {
    constexpr int N = kUnits * R;
    alignas(64) float sums[4][N * kLanes];  // cos even, cos odd, sin odd, sin even
    const int terms[4] = {quarters.cos_even, quarters.cos_odd, quarters.cos_odd, quarters.sin_even};
    for (int quarter = 0; quarter < 4; ++quarter) {
        Floats acc[N] = {};
        accumulate<R>(basis, w, terms[quarter], acc);
#pragma GCC unroll 24
        for (int i = 0; i < N; ++i) store(sums[quarter] + i * kLanes, acc[i]);
        basis += static_cast<size_t>(terms[quarter]) * R * kLanes;
        w += static_cast<size_t>(terms[quarter]) * kUnits;
    }
    for (int q = 0; q < 4; ++q) {
        if (!(members >> q & 1)) continue;
        const Floats far = broadcast(q & 2 ? -1.0f : 1.0f), west = broadcast(q & 1 ? -1.0f : 1.0f);
        Floats z[N];
#pragma GCC unroll 24
        for (int i = 0; i < N; ++i) {
            const Floats cosines = multiply_add(far, load(sums[1] + i * kLanes), load(sums[0] + i * kLanes));
            const Floats sines = multiply_add(far, load(sums[3] + i * kLanes), load(sums[2] + i * kLanes));
            z[i] = multiply_add(west, sines, cosines) + broadcast(bias[i / R]);
        }
        sine_in_place<N>(z);
#pragma GCC unroll 24
        for (int i = 0; i < N; ++i) store(to[q] + i * kLanes, z[i]);
    }
}

using Synthesise = void (*)(const Quarters&, const float*, const float*, const float*, int, float* const*);
constexpr Synthesise kSynthesise[4] = {nullptr, synthesise<1>, synthesise<2>, synthesise<3>};

size_t encode_pixels_scratch(const Network& net) {
    return 2 * static_cast<size_t>(net.widest) * kBlockTiles * kTile;
}

// `tiles` have at most kBlockTiles members in all.
void encode_pixels(const Network& net, const float* row_coefficients, const ColumnTile* tiles, int count,
                   float* out, ptrdiff_t stride, float* scratch) {
    const int terms = 2 * net.basis.legendre.degrees - 1;
    const Quarters quarters = Quarters::of(net.basis.legendre.degrees);
    const PackedLayer& layer = net.layers[0];
    Activations first{}, spare{};
    TileOutput tile_outputs[kBlockTiles];
    float* member_data[kBlockTiles][4] = {};
    const size_t tile_size = static_cast<size_t>(net.widest) * kTile;
    for (int i = 0; i < count; ++i)
        for (int q = 0; q < 4; ++q) {
            if (!(tiles[i].members >> q & 1)) continue;
            const int t = first.tiles++;
            spare.tiles = first.tiles;
            first.vectors[t] = spare.vectors[t] = tiles[i].vectors;
            first.data[t] = member_data[i][q] = scratch + t * tile_size;
            spare.data[t] = scratch + (kBlockTiles + t) * tile_size;
            tile_outputs[t] = {out, stride, tiles[i].column + q * tiles[i].vectors * kLanes};
        }
    for (int unit = 0; unit < layer.padded; unit += kUnits) {
        const float* w = row_coefficients + static_cast<size_t>(unit) * terms;
        for (int i = 0; i < count; ++i) {
            const size_t offset = static_cast<size_t>(unit) * tiles[i].vectors * kLanes;
            float* to[4];
            for (int q = 0; q < 4; ++q) to[q] = member_data[i][q] ? member_data[i][q] + offset : nullptr;
            kSynthesise[tiles[i].vectors](quarters, tiles[i].fourier_basis, w, layer.bias + unit,
                                          tiles[i].members, to);
        }
    }
    later_layers(net, first, spare, tile_outputs);
}

}  // namespace satclip::SATCLIP_ISA
