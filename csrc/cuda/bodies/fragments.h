// Tensor-core operands of a dense layer, in both precisions.
//
// Activations and weights lie in memory as fragments: for each step of inputs 32 lanes × 16 bytes. A lane's
// fragment of 16 pixels is read and written with one instruction, without bank conflicts; and since a sum's
// lane (g, 2t) (g, 2t+1) is also the lane of the next layer's input, no value ever changes lanes. For float32
// the inputs of a step are permuted to make that so: input 2t stands at the manual's t, 2t + 1 at t + 4, in
// both operands.
//
// A group is 16 neighbouring outputs: two multiplications that share the lane's 16 bytes of weights.
#pragma once

#include "half.h"
#include "policy.h"

namespace satclip::cuda {

constexpr int kGroup = 16;           // outputs
constexpr int kFragmentPixels = 16;  // of a fragment of activations

// float32 as three multiplications of TF32: x = high + low, both cut to 11 bits, and low · low left out: what
// is lost of a product is below 2⁻¹⁹ of it, 5e-7 on average.
struct Exact {
    static constexpr int kStep = 8;  // inputs of a multiplication

    template <class P>
    struct Operand {
        typename P::template PerLane<Words> high, low;
    };

    template <class P>
    SATCLIP_BODY static void prepare(P& p, const typename P::template PerLane<Words>& raw, Operand<P>& to) {
        p.lanes([&](int lane) {
            SATCLIP_UNROLL
            for (int i = 0; i < 4; ++i) {
                const std::uint32_t high = raw[lane].word[i] & 0xffffe000u;
                const float low = bits_as<float>(raw[lane].word[i]) - bits_as<float>(high);
                to.high[lane].word[i] = high;
                to.low[lane].word[i] = bits_as<std::uint32_t>(low) & 0xffffe000u;
            }
        });
    }

    // sums[n] += a · b[n / 2] for N neighbouring 8 outputs. Each step is summed on its own, small products
    // first, and added with the float adder: tensor cores cut their sums towards zero, which over 512 inputs
    // would bias them by 3e-5.
    template <int N, class P>
    SATCLIP_BODY static void multiply(P& p, typename P::template PerLane<Sums> (&sums)[N],
                                      const Operand<P>& a, const Operand<P> (&b)[N / 2]) {
        constexpr int together =
            4;  // enough to hide a multiplication's latency, few enough for the registers
        SATCLIP_UNROLL
        for (int first = 0; first < N; first += together) {
            typename P::template PerLane<Sums> step[together];
            p.lanes([&](int lane) {
                SATCLIP_UNROLL
                for (int i = 0; i < together; ++i) step[i][lane] = {};
            });
            SATCLIP_UNROLL
            for (int i = 0; i < together; ++i) p.mma_tf32(step[i], a.low, b[(first + i) / 2].high, i % 2);
            SATCLIP_UNROLL
            for (int i = 0; i < together; ++i) p.mma_tf32(step[i], a.high, b[(first + i) / 2].low, i % 2);
            SATCLIP_UNROLL
            for (int i = 0; i < together; ++i) p.mma_tf32(step[i], a.high, b[(first + i) / 2].high, i % 2);
            p.lanes([&](int lane) {
                SATCLIP_UNROLL
                for (int i = 0; i < together; ++i) SATCLIP_UNROLL
                for (int k = 0; k < 4; ++k) sums[first + i][lane].value[k] += step[i][lane].value[k];
            });
        }
    }

    // Index of the word of a weight (input within the step, output within the group).
    SATCLIP_HD_INLINE static int word_of_weight(int input, int output) {
        const int g = output % 8, t = input / 2;
        return (g * 4 + t) * 4 + (output / 8) * 2 + input % 2;
    }

    // Stores sums of a group after the sine as fragments of the next layer's inputs; `to` is the group's
    // first fragment, the next step's lies `step_stride` further.
    SATCLIP_HD_INLINE static void store_activations(Words* to, std::ptrdiff_t step_stride,
                                                    const float (&first)[4], const float (&second)[4]) {
        *to = {{bits_as<std::uint32_t>(first[0]), bits_as<std::uint32_t>(first[2]),
                bits_as<std::uint32_t>(first[1]), bits_as<std::uint32_t>(first[3])}};
        to[step_stride] = {{bits_as<std::uint32_t>(second[0]), bits_as<std::uint32_t>(second[2]),
                            bits_as<std::uint32_t>(second[1]), bits_as<std::uint32_t>(second[3])}};
    }
};

// float16 operands, float32 sums.
struct Fast {
    static constexpr int kStep = 16;

    template <class P>
    struct Operand {
        typename P::template PerLane<Words> raw;
    };

    template <class P>
    SATCLIP_BODY static void prepare(P&, const typename P::template PerLane<Words>& raw, Operand<P>& to) {
        to.raw = raw;
    }

    template <int N, class P>
    SATCLIP_BODY static void multiply(P& p, typename P::template PerLane<Sums> (&sums)[N],
                                      const Operand<P>& a, const Operand<P> (&b)[N / 2]) {
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) p.mma_f16(sums[n], a.raw, b[n / 2].raw, n % 2);
    }

    // Index of the word of weights (input, input + 1), input even.
    SATCLIP_HD_INLINE static int word_of_weight(int input, int output) {
        const int g = output % 8, t = input / 2 % 4;
        return (g * 4 + t) * 4 + (output / 8) * 2 + input / 8;
    }

    SATCLIP_HD_INLINE static void store_activations(Words* to, std::ptrdiff_t, const float (&first)[4],
                                                    const float (&second)[4]) {
        *to = {{half_pair(first[0], first[1]), half_pair(first[2], first[3]), half_pair(second[0], second[1]),
                half_pair(second[2], second[3])}};
    }
};

}  // namespace satclip::cuda
