// The recurrence in l for one order m, for as many colatitudes as fit, in float64.
#pragma once

#include "harmonics.h"
#include "simd.h"

namespace satclip::SATCLIP_ISA {

struct DoublesArithmetic {
    using Value = Doubles;
    SATCLIP_INLINE Doubles all(double v) { return SATCLIP_ISA::all(v); }
    SATCLIP_INLINE Doubles fused(Doubles a, Doubles b, Doubles c) { return SATCLIP_ISA::fused(a, b, c); }
};

// Calls sink(l, P(l,m)) for l = m .. L−1; `first` is P(m,m), √2 included where m > 0.
template <class Sink>
SATCLIP_INLINE void legendre_order(const LegendreTable& table, int m, Doubles x, Doubles first, Sink&& sink) {
    const size_t at = legendre_offset(table.degrees, m);
    legendre_recurrence<DoublesArithmetic>(table.a + at, table.c + at, table.degrees, m, x, first, sink);
}

SATCLIP_INLINE Doubles flushed(Doubles v) { return satclip::flushed<DoublesArithmetic>(v); }

// Makes zeros of the harmonics of an order that are too small to count. Only lanes whose P(m,m) is that small
// have any; where none is, nothing is done.
struct TinyHarmonics {
    Longs faint;  // lanes
    bool occur;
    SATCLIP_INLINE TinyHarmonics of(Doubles sectoral) {
        const Longs faint = sectoral < all(kHarmonicTiny);
        return {faint, any((Ints)faint)};
    }
    SATCLIP_MEMBER Doubles cleared(Doubles p) const {
        if (!occur) return p;
        const Longs tiny = faint & (p < all(kHarmonicTiny)) & (p > all(-kHarmonicTiny));
        return (Doubles)((Longs)p & ~tiny);
    }
};

// What the orders of a block of places share, lane by lane: advanced from m to m + 1 in place.
struct OrderState {
    double *x, *s;            // cos θ = −sin(lat), sin θ = cos(lat)
    double *cosine1, *sine1;  // of lon
    double *cosine, *sine;    // of m·lon
    double* sectoral;         // P(m,m) without √2
};
constexpr int kOrderStateRows = 7;

SATCLIP_INLINE OrderState order_state(double* memory, int lanes) {
    return {memory,
            memory + lanes,
            memory + 2 * lanes,
            memory + 3 * lanes,
            memory + 4 * lanes,
            memory + 5 * lanes,
            memory + 6 * lanes};
}

SATCLIP_INLINE void next_order(const OrderState& state, int next_m, int at) {
    const Doubles c1 = load(state.cosine1 + at), s1 = load(state.sine1 + at);
    Doubles c = load(state.cosine + at), s = load(state.sine + at);
    next_multiple(c, s, c1, s1);
    store(state.cosine + at, c);
    store(state.sine + at, s);
    const Doubles p = load(state.sectoral + at) * (load(state.s + at) * all(legendre_diagonal(next_m)));
    store(state.sectoral + at, flushed(p));
}

}  // namespace satclip::SATCLIP_ISA
