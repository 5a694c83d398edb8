// Legendre recurrence in l for one order m, a vector of colatitudes at once, in float64.
#pragma once

#include "harmonics.h"
#include "simd.h"

namespace satclip::SATCLIP_ISA {

struct DoublesArithmetic {
    using Value = Doubles;
    SATCLIP_INLINE Doubles broadcast(double v) { return SATCLIP_ISA::broadcast(v); }
    SATCLIP_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
        return SATCLIP_ISA::multiply_add(a, b, c);
    }
};

// Calls sink(l, P(l,m)) for l = m .. L−1; `first` is P(m,m), √2 included where m > 0.
template <class Sink>
SATCLIP_INLINE void legendre_order(const LegendreTable& table, int m, Doubles x, Doubles first, Sink&& sink) {
    const size_t offset = legendre_offset(table.degrees, m);
    legendre_recurrence<DoublesArithmetic>(table.a + offset, table.c + offset, table.degrees, m, x, first,
                                           sink);
}

SATCLIP_INLINE Doubles flush_tiny(Doubles v) { return satclip::flush_tiny<DoublesArithmetic>(v); }

// Makes zeros of the harmonics of an order that are too small to count. Only lanes whose P(m,m) is that small
// have any; where none is, nothing is done.
struct TinyHarmonics {
    Longs faint;  // lanes
    bool occur;
    SATCLIP_INLINE TinyHarmonics of(Doubles sectoral) {
        const Longs faint = sectoral < broadcast(kHarmonicTiny);
        return {faint, any_lane((Ints)faint)};
    }
    SATCLIP_MEMBER Doubles cleared(Doubles p) const {
        if (!occur) return p;
        const Longs tiny = faint & (p < broadcast(kHarmonicTiny)) & (p > broadcast(-kHarmonicTiny));
        return (Doubles)((Longs)p & ~tiny);
    }
};

// Running state of the orders of a block of points, lane by lane: advanced from m to m + 1 in place.
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

SATCLIP_INLINE void next_order(const OrderState& state, int next_m, int lane) {
    const Doubles c1 = load(state.cosine1 + lane), s1 = load(state.sine1 + lane);
    Doubles c = load(state.cosine + lane), s = load(state.sine + lane);
    next_multiple(c, s, c1, s1);
    store(state.cosine + lane, c);
    store(state.sine + lane, s);
    const Doubles p =
        load(state.sectoral + lane) * (load(state.s + lane) * broadcast(legendre_diagonal(next_m)));
    store(state.sectoral + lane, flush_tiny(p));
}

}  // namespace satclip::SATCLIP_ISA
