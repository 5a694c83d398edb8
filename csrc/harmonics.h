// Real spherical harmonics: orthonormal, without Condon–Shortley phase, m < 0 ↔ sin(|m|φ), m > 0 ↔ cos(mφ).
//
// With x = cos θ = −sin(lat), s = sin θ = cos(lat) and P(m,m) = s^m · const, fully normalised Legendre
// functions follow the standard forward column recurrence in l (Holmes & Featherstone 2002, eq. 11), in
// float64:
//     P(l,m) = a(l,m) · x · P(l−1,m) + c(l,m) · P(l−2,m)
//     a = √((4l²−1)/(l²−m²))      c = −a(l,m)/a(l−1,m)
// The reference measures φ from lon = −180°, so cos mφ = (−1)^m cos(m·lon): kernels use lon itself and the
// sign is folded into the first layer when it is packed.
#pragma once

#include <cmath>
#include <cstddef>

#include "host_device.h"

namespace satclip {

SATCLIP_HD static inline size_t legendre_offset(int degrees, int m) {
    return static_cast<size_t>(m) * degrees - static_cast<size_t>(m) * (m - 1) / 2;
}

SATCLIP_HD static inline size_t legendre_size(int degrees) {
    return static_cast<size_t>(degrees) * (degrees + 1) / 2;
}

SATCLIP_HD static inline double legendre_a(int l, int m) {
    const double l2 = static_cast<double>(l) * l, m2 = static_cast<double>(m) * m;
    return std::sqrt((4 * l2 - 1) / (l2 - m2));
}

SATCLIP_HD static inline double legendre_c(int l, int m) {
    return l < m + 2 ? 0.0 : -legendre_a(l, m) / legendre_a(l - 1, m);
}

// P(m,m) = P(m−1,m−1) · s · diagonal(m); P(0,0) = 1/√(4π). The √2 of m > 0 is not in it.
SATCLIP_HD static inline double legendre_diagonal(int m) { return std::sqrt((2.0 * m + 1) / (2.0 * m)); }
constexpr double kLegendre00 = 0.28209479177387814347;
constexpr double kSqrt2 = 1.41421356237309504880;

// Below this a sectoral function counts as zero, so that the recurrence never meets a subnormal. What would
// have grown from it stays below 1e-159 up to L = 200 and below 1e-19 up to L = 1000.
constexpr double kLegendreTiny = 1e-200;
// Harmonics below this are zero when they are rounded to float32: they change no sum, and the subnormals
// among them (L = 40 above 83° of latitude, L = 200 above 50°) go through microcode, very slowly, on some
// processors.
constexpr double kHarmonicTiny = 1e-30;
constexpr int kMaxDegrees = 1000;

// Index of harmonic (l, ±m) among the inputs of the first layer: orders one after another, in each order
// the cosines (even l−m, then odd l−m), then the sines likewise. Whole orders make chunks, and each quarter
// is one run, so the same packed weights serve scattered points and the latitude contraction of product
// grids.
SATCLIP_HD static inline int input_of_order(int degrees, int m) {
    return m == 0 ? 0 : (2 * degrees - m) * m + m - degrees;
}
SATCLIP_HD static inline int even_count(int degrees, int m) { return (degrees - m + 1) / 2; }
SATCLIP_HD static inline int input_within_order(int degrees, int m, int l, bool sine) {
    const int step = l - m;
    return (sine ? degrees - m : 0) + (step % 2 ? even_count(degrees, m) : 0) + step / 2;
}

// A sectoral function, zero where it is too small to count.
template <class A>
SATCLIP_HD_INLINE typename A::Value flush_tiny(const typename A::Value& v) {
    return v < A::broadcast(kLegendreTiny) ? (v != v ? v : A::broadcast(0.0)) : v;
}

// Calls sink(l, P(l,m)) for l = m .. L−1, for one colatitude or a vector of them; a and c are the
// coefficients of order m from l = m on, `first` is P(m,m), √2 included where m > 0. A: the arithmetic on
// them.
template <class A, class Sink>
SATCLIP_HD_INLINE void legendre_recurrence(const double* a, const double* c, int degrees, int m,
                                           const typename A::Value& x, const typename A::Value& first,
                                           Sink&& sink) {
    typename A::Value previous = A::broadcast(0.0), current = first;
    sink(m, current);
    for (int l = m + 1; l < degrees; ++l) {
        const typename A::Value next =
            A::multiply_add(A::broadcast(a[l - m]) * x, current, A::broadcast(c[l - m]) * previous);
        previous = current;
        current = next;
        sink(l, current);
    }
}

// (cos, sin) of m·α → of (m + 1)·α, given those of α.
template <class V>
SATCLIP_HD_INLINE void next_multiple(V& cosine, V& sine, const V& cosine1, const V& sine1) {
    const V next = cosine * cosine1 - sine * sine1;
    sine = sine * cosine1 + cosine * sine1;
    cosine = next;
}

struct SineCosine {
    double sine, cosine;
};

// Of an angle in degrees: the reduction is exact, and multiples of 90° give exact zeros and ones.
SATCLIP_HD static inline SineCosine sincos_degrees(double degrees) {
    double reduced = std::remainder(degrees, 360.0);      // exact, [−180, 180]
    if (!(reduced >= -180.0)) return {reduced, reduced};  // NaN: has no quarter
    const double quarter = std::rint(reduced / 90.0);
    reduced = (reduced - 90.0 * quarter) * 0.017453292519943295769;
    const double s = std::sin(reduced), c = std::cos(reduced);
    switch (static_cast<int>(quarter) & 3) {
        case 0:
            return {s, c};
        case 1:
            return {c, -s};
        case 2:
            return {-s, -c};
        default:
            return {-c, s};
    }
}

}  // namespace satclip
