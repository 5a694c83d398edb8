// TIFF tiles of pixels: quantise, transpose (or not) and difference a block; average it 2×2. One thread, no
// allocation.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/raster_tiles.h"
#include "quantise.h"

namespace satclip::SATCLIP_ISA {

using raster::Block;
using raster::Encoding;
using raster::Predictor;
using raster::QuantisationStatistics;
using raster::Sample;
using raster::Tiles;

namespace {

// Four bands in a register of GCC's and Clang's vector types, because neither vectorises these loops on its
// own for every instruction set. Wider is slower: the transposition goes through memory, and 16-byte stores
// are the ones that forward to the 4-byte loads behind them (int8, 64-pixel tiles, Zen 4: 2.2 GB/s of pixels
// with 4 lanes, 1.2 with 8, 1.0 with 16).
constexpr int kLanes = 4;
constexpr int kLineBands = 16;  // bands of a pixel in one cache line, converted together

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Mask = std::int32_t __attribute__((vector_size(4 * kLanes)));

constexpr int kLargestSide = 1024;
constexpr std::uint32_t kNaN =
    0x7fc00000u;  // one NaN for all: its sign depends on the instructions that made it

inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Floats load_first(const float* from, int count) {
    alignas(64) float padded[kLanes] = {};
    std::copy_n(from, count, padded);
    return load(padded);
}

inline Floats broadcast(float value) { return Floats{} + value; }
inline Words bits_of(Floats value) { return reinterpret_cast<Words>(value); }
inline Floats floats_of(Words bits) { return reinterpret_cast<Floats>(bits); }

// `yes` where the mask is −1, `no` where it is 0.
inline Words select(Mask mask, Words yes, Words no) {
    const Words bits = reinterpret_cast<Words>(mask);
    return (bits & yes) | (~bits & no);
}
inline Floats select(Mask mask, Floats yes, Floats no) {
    return floats_of(select(mask, bits_of(yes), bits_of(no)));
}

// In the float adder, because SSE2 has no rounding instruction.
inline Words round_even(Floats value) {
    const Floats magic = broadcast(kRounding);
    return bits_of(value + magic) - bits_of(magic);
}

// IEEE half of |value| ≤ 65504, to nearest even, in the low 16 bits.
inline Words half_bits(Floats value) {
    const Words bits = bits_of(value);
    const Words sign = (bits >> 16) & 0x8000u;
    const Words magnitude = bits & 0x7fffffffu;
    // Subnormal halves: adding 0.5 lets the float adder shift and round the mantissa.
    const Words small = bits_of(floats_of(magnitude) + broadcast(0.5f)) - bits_of(broadcast(0.5f));
    const Words odd = (magnitude >> 13) & 1u;
    const Words normal = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
    return sign | select(reinterpret_cast<Mask>(magnitude) < (113 << 23), small, normal);
}

template <Sample>
struct Convert;

template <class T>
struct ConvertInteger {
    using type = std::make_unsigned_t<T>;
    static constexpr bool scaled = true;
    static constexpr float limit = static_cast<float>(Codes<T>::limit);
    // A code of 127.4 is stored as 127 within half a step: only what rounds beyond the limit is clipped.
    static constexpr float clip_from = limit + 0.5f;
    static constexpr std::uint32_t missing = static_cast<std::uint32_t>(Codes<T>::missing);
    static Words store(Floats code) { return round_even(code); }
};

template <>
struct Convert<Sample::int8> : ConvertInteger<std::int8_t> {};
template <>
struct Convert<Sample::uint8> : ConvertInteger<std::int8_t> {
    static constexpr std::uint32_t missing = 0;
    static Words store(Floats code) { return round_even(code) + 128u; }
};
template <>
struct Convert<Sample::int16> : ConvertInteger<std::int16_t> {};

template <>
struct Convert<Sample::float16> {
    using type = std::uint16_t;
    static constexpr bool scaled = false;
    static constexpr float limit = 65504.0f;
    static constexpr float clip_from = limit;
    static constexpr std::uint32_t missing = 0x7e00u;
    static Words store(Floats value) { return half_bits(value); }
};

template <>
struct Convert<Sample::float32> {
    using type = std::uint32_t;
    static constexpr bool scaled = false;
    static constexpr float limit = 3.402823466e38f;
    static constexpr float clip_from = limit;
    static constexpr std::uint32_t missing = kNaN;
    static Words store(Floats value) { return bits_of(value); }
};

// Scale, offset and statistics of kLanes bands, in registers while a row is converted.
struct BandState {
    Floats inverse_scale = {}, offset = {}, overshoot = {};
    Mask clipped = {};
};

template <Sample S>
inline Words convert(Floats value, BandState& state) {
    using C = Convert<S>;
    const Mask valid = value == value;
    Floats code = C::scaled ? (value - state.offset) * state.inverse_scale : value;
    code = floats_of(bits_of(code) & reinterpret_cast<Words>(valid));
    const Floats size = floats_of(bits_of(code) & 0x7fffffffu);
    const Floats limit = broadcast(C::limit);
    const Floats overshoot = size - limit;
    state.clipped -= size > broadcast(C::clip_from);  // a true lane is −1
    state.overshoot = select(overshoot > state.overshoot, overshoot, state.overshoot);
    code = select(code > limit, limit, code);
    code = select(code < -limit, -limit, code);
    return select(valid, C::store(code), Words{} + C::missing);
}

// A row of pixels → a row of each of kLanes bands, `side` samples apart. Neighbouring pixels are packed into
// one word, so that there is one scattered store for two or four samples.
template <Sample S, bool Whole>
void transpose_row(const float* pixel, int columns, int bands, int present, BandState& band_state, int side,
                   typename Convert<S>::type* rows) {
    using T = typename Convert<S>::type;
    constexpr int per_word = 4 / sizeof(T);
    constexpr std::uint32_t low = 0xffffffffu >> (32 - 8 * sizeof(T));
    const auto read = [&] { return Whole ? load(pixel) : load_first(pixel, present); };
    BandState state = band_state;
    alignas(64) std::uint32_t words[kLanes];
    int column = 0;
    for (; column + per_word <= columns; column += per_word) {
        Words packed = {};
        for (int i = 0; i < per_word; ++i, pixel += bands)
            packed |= (convert<S>(read(), state) & low) << (i * 8 * static_cast<int>(sizeof(T)) % 32);
        std::memcpy(words, &packed, sizeof words);
        for (int k = 0; k < kLanes; ++k) std::memcpy(rows + k * side + column, &words[k], sizeof words[k]);
    }
    for (; column < columns; ++column, pixel += bands) {
        const Words code = convert<S>(read(), state);
        for (int k = 0; k < kLanes; ++k) rows[k * side + column] = static_cast<T>(code[k]);
    }
    band_state = state;
}

// Differences of neighbours along a row: TIFF's horizontal predictor.
template <class T>
inline void difference(const T* __restrict row, int count, T* __restrict out) {
    out[0] = row[0];
    for (int i = 1; i < count; ++i) out[i] = static_cast<T>(row[i] - row[i - 1]);
}

// A row of one band with its padding → the bytes of the tile's row.
template <class T>
void write_row(const T* row, int side, Predictor predictor, std::uint8_t* out) {
    alignas(64) T buffer[kLargestSide];
    buffer[0] = 0;  // for compilers that cannot see that a row has pixels
    if (predictor == Predictor::horizontal) {
        difference(row, side, buffer);
        std::memcpy(out, buffer, sizeof(T) * side);
    } else if (predictor == Predictor::floating) {
        // Byte planes, most significant first, then differences of neighbouring bytes over the whole row.
        auto* plane = reinterpret_cast<std::uint8_t*>(buffer);
        for (int shift = 8 * (static_cast<int>(sizeof(T)) - 1); shift >= 0; shift -= 8, plane += side)
            for (int i = 0; i < side; ++i) plane[i] = static_cast<std::uint8_t>(row[i] >> shift);
        difference(reinterpret_cast<const std::uint8_t*>(buffer), side * static_cast<int>(sizeof(T)), out);
    } else {
        std::memcpy(out, row, sizeof(T) * side);
    }
}

// One row of one tile, up to a cache line of bands: `columns` pixels at `source`, `bands` floats apart.
template <Sample S>
void pack_row(const float* source, int columns, int bands, int present, BandState* states,
              Predictor predictor, int side, std::uint8_t* out, std::size_t band_stride) {
    using T = typename Convert<S>::type;
    alignas(64) T rows[kLanes * kLargestSide];  // [kLanes][side]; 64 KiB of stack at most
    for (int first = 0; first < present; first += kLanes, ++states, source += kLanes) {
        const int group = std::min(kLanes, present - first);
        if (group == kLanes)
            transpose_row<S, true>(source, columns, bands, group, *states, side, rows);
        else
            transpose_row<S, false>(source, columns, bands, group, *states, side, rows);
        for (int k = 0; k < group; ++k, out += band_stride) {
            // Beyond the raster's edge the last pixel is repeated: nothing compresses better, and nobody
            // reads it.
            T* row = rows + k * side;
            std::fill(row + columns, row + side, row[columns - 1]);
            write_row(row, side, predictor, out);
        }
    }
}

// One band group of a row of one tile whose bands are interleaved. Differences are taken in registers, from
// the codes of the pixel before.
template <Sample S, bool Whole>
void pack_interleaved_group(const float* pixel, int columns, int bands, int present, BandState& band_state,
                            Predictor predictor, int side, std::uint8_t* out) {
    using T = typename Convert<S>::type;
    const auto read = [&](const float* from) { return Whole ? load(from) : load_first(from, present); };
    const auto store = [&](auto zero, Words words, std::uint8_t* to) {
        decltype(zero) samples[kLanes];
        for (int k = 0; k < kLanes; ++k) samples[k] = static_cast<decltype(zero)>(words[k]);
        std::memcpy(to, samples, sizeof zero * (Whole ? kLanes : present));
    };
    const std::size_t plane_bytes = static_cast<std::size_t>(side) * bands;
    BandState state = band_state, ignored = band_state;
    // Beyond the raster's edge the last pixel is repeated.
    const Words last = convert<S>(read(pixel + static_cast<std::ptrdiff_t>(columns - 1) * bands), ignored);
    Words before = {};
    for (int column = 0; column < side; ++column) {
        const Words code = column < columns
                               ? convert<S>(read(pixel + static_cast<std::ptrdiff_t>(column) * bands), state)
                               : last;
        if (predictor == Predictor::floating) {
            // Byte planes of the row, most significant first; a plane's first bytes are differences from the
            // last ones of the plane before.
            std::uint8_t* plane = out + static_cast<std::size_t>(column) * bands;
            for (int shift = 8 * (static_cast<int>(sizeof(T)) - 1); shift >= 0;
                 shift -= 8, plane += plane_bytes) {
                const bool first_plane = shift == 8 * (static_cast<int>(sizeof(T)) - 1);
                const Words previous = column > 0    ? before >> shift
                                       : first_plane ? Words{}
                                                     : last >> (shift + 8);
                store(std::uint8_t{}, (code >> shift) - previous, plane);
            }
        } else {
            const Words sample = predictor == Predictor::horizontal ? code - before : code;
            store(T{}, sample, out + static_cast<std::size_t>(column) * bands * sizeof(T));
        }
        before = code;
    }
    band_state = state;
}

// One row of one tile whose bands are interleaved, up to a cache line of bands.
template <Sample S>
void pack_interleaved_row(const float* source, int columns, int bands, int present, BandState* states,
                          Predictor predictor, int side, std::uint8_t* out) {
    // Bytes of a float's plane lie next to those of the other bands, samples next to samples.
    const std::size_t step = predictor == Predictor::floating ? 1 : sizeof(typename Convert<S>::type);
    for (int first = 0; first < present; first += kLanes, ++states, source += kLanes, out += kLanes * step) {
        const int group = std::min(kLanes, present - first);
        if (group == kLanes)
            pack_interleaved_group<S, true>(source, columns, bands, group, *states, predictor, side, out);
        else
            pack_interleaved_group<S, false>(source, columns, bands, group, *states, predictor, side, out);
    }
}

template <Sample S>
void pack(const Block& block, const Encoding& encoding, const Tiles& tiles,
          QuantisationStatistics& statistics) {
    using C = Convert<S>;
    const std::size_t plane_bytes = sizeof(typename C::type) * tiles.side * tiles.side;
    const std::size_t tile_bytes = plane_bytes * block.bands;
    const std::size_t row_bytes = (tiles.interleaved ? tile_bytes : plane_bytes) / tiles.side;
    for (int band = 0; band < block.bands; band += kLineBands) {
        BandState states[kLineBands / kLanes];
        const int present = std::min(kLineBands, block.bands - band);
        for (int k = 0; C::scaled && k < present; k += kLanes) {
            const int group = std::min(kLanes, present - k);
            states[k / kLanes].inverse_scale = load_first(encoding.inverse_scale + band + k, group);
            states[k / kLanes].offset = load_first(encoding.offset + band + k, group);
        }
        for (int tile = 0; tile < tiles.count; ++tile) {
            const std::ptrdiff_t first_column = static_cast<std::ptrdiff_t>(tile) * tiles.side;
            const int columns =
                static_cast<int>(std::min<std::ptrdiff_t>(tiles.side, block.columns - first_column));
            const float* source = block.data + first_column * block.bands + band;
            const bool bytewise = encoding.predictor == Predictor::floating;
            const std::size_t band_bytes = !tiles.interleaved ? plane_bytes
                                           : bytewise         ? 1
                                                              : sizeof(typename C::type);
            std::uint8_t* out =
                tiles.data + tile * tile_bytes + band * band_bytes + tiles.first_row * row_bytes;
            for (int row = 0; row < block.rows; ++row, source += block.row_stride, out += row_bytes) {
                if (tiles.interleaved)
                    pack_interleaved_row<S>(source, columns, block.bands, present, states, encoding.predictor,
                                            tiles.side, out);
                else
                    pack_row<S>(source, columns, block.bands, present, states, encoding.predictor, tiles.side,
                                out, plane_bytes);
            }
        }
        for (int k = 0; k < present; ++k) {
            const std::int32_t clipped = states[k / kLanes].clipped[k % kLanes];
            const float overshoot = states[k / kLanes].overshoot[k % kLanes];
            statistics.clipped[band + k] += clipped;
            if (clipped > 0)
                statistics.overshoot[band + k] = std::max(statistics.overshoot[band + k], overshoot);
        }
    }
}

void count_valid(const Block& block, const Tiles& tiles, std::int64_t* valid) {
    for (int row = 0; row < block.rows; ++row) {
        const float* pixel = block.data + row * block.row_stride;
        for (int column = 0; column < block.columns; ++column, pixel += block.bands)
            valid[column / tiles.side] += *pixel == *pixel ? 1 : 0;
    }
}

void pack_tiles(const Block& block, const Encoding& encoding, const Tiles& tiles,
                QuantisationStatistics& statistics) {
    count_valid(block, tiles, statistics.valid);
    switch (encoding.sample) {
        case Sample::int8:
            return pack<Sample::int8>(block, encoding, tiles, statistics);
        case Sample::uint8:
            return pack<Sample::uint8>(block, encoding, tiles, statistics);
        case Sample::int16:
            return pack<Sample::int16>(block, encoding, tiles, statistics);
        case Sample::float16:
            return pack<Sample::float16>(block, encoding, tiles, statistics);
        case Sample::float32:
            return pack<Sample::float32>(block, encoding, tiles, statistics);
    }
}

// Mean of the valid values, summed as (top left + top right) + (bottom left + bottom right); NaN
// when none is.
inline Floats mean_of_valid(Floats a, Floats b, Floats c, Floats d) {
    const Mask has_a = a == a, has_b = b == b, has_c = c == c, has_d = d == d;
    const Floats zero = {};
    const Floats sum =
        (select(has_a, a, zero) + select(has_b, b, zero)) + (select(has_c, c, zero) + select(has_d, d, zero));
    const Floats mean = sum / __builtin_convertvector(-(has_a + has_b + has_c + has_d), Floats);
    return select(has_a | has_b | has_c | has_d, mean, floats_of(Words{} + kNaN));
}

void halve(const Block& block, float* out, std::ptrdiff_t out_row_stride) {
    const Floats missing = floats_of(Words{} + kNaN);
    const int bands = block.bands;
    for (int row = 0; row < block.rows; row += 2) {
        const bool has_bottom = row + 1 < block.rows;
        const float* pixel = block.data + row * block.row_stride;
        float* target = out + (row / 2) * out_row_stride;
        for (int column = 0; column < block.columns; column += 2, pixel += 2 * bands, target += bands) {
            const bool has_right = column + 1 < block.columns;
            for (int k = 0; k < bands; k += kLanes) {
                const int present = std::min(kLanes, bands - k);
                const auto value_at = [&](bool exists, std::ptrdiff_t step) {
                    if (!exists) return missing;
                    return present == kLanes ? load(pixel + k + step) : load_first(pixel + k + step, present);
                };
                const Floats mean = mean_of_valid(
                    value_at(true, 0), value_at(has_right, bands), value_at(has_bottom, block.row_stride),
                    value_at(has_right && has_bottom, block.row_stride + bands));
                std::memcpy(target + k, &mean, sizeof(float) * present);
            }
        }
    }
}

}  // namespace

extern const RasterKernels raster_kernels;
const RasterKernels raster_kernels = {pack_tiles, halve};

}  // namespace satclip::SATCLIP_ISA
