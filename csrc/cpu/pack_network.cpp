// Packing of a network's weights for one instruction set.
#include <algorithm>
#include <cstdlib>
#include <new>

#include "harmonics.h"
#include "memory.h"
#include "parallel.h"
#include "rounding.h"
#include "satclip.h"

namespace satclip {

// Inputs of the first layer in a chunk, about: its panel (8 × 256 floats) and the harmonics of a tile stay in
// L1 and L2. A whole order is never split, so at L = 200 a chunk has up to 398.
constexpr int kTargetChunkInputs = 256;

static void cut_chunks(int degrees, std::vector<int>& order, std::vector<int>& input) {
    order = {0};
    input = {0};
    for (int m = 0; m < degrees; ++m) {
        const int end = m + 1 == degrees ? degrees * degrees : input_of_order(degrees, m + 1);
        const bool full = end - input.back() > kTargetChunkInputs && m > order.back();
        if (full) {
            order.push_back(m);
            input.push_back(input_of_order(degrees, m));
        }
    }
    order.push_back(degrees);
    input.push_back(degrees * degrees);
}

HarmonicBasisData::HarmonicBasisData(int degrees) : degrees_(degrees) {
    const size_t n = legendre_size(degrees);
    legendre_.resize(2 * n);
    for (int m = 0; m < degrees; ++m)
        for (int l = m + 1; l < degrees; ++l) {
            legendre_[legendre_offset(degrees, m) + l - m] = legendre_a(l, m);
            legendre_[n + legendre_offset(degrees, m) + l - m] = legendre_c(l, m);
        }
    cut_chunks(degrees, chunk_order_, chunk_input_);
}

HarmonicBasis HarmonicBasisData::view() const {
    return {{degrees_, legendre_.data(), legendre_.data() + legendre_.size() / 2},
            static_cast<int>(chunk_order_.size()) - 1,
            chunk_order_.data(),
            chunk_input_.data()};
}

NetworkData::NetworkData(const Kernels& kernels, int degrees, const std::vector<DenseLayer>& layers,
                         int threads)
    : kernels_(kernels), basis_(degrees) {
    auto allocate = [this](size_t floats) {
        memory_.push_back(aligned_floats(floats));
        return memory_.back().get();
    };
    int widest = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        const DenseLayer& from = layers[i];
        const bool last = i + 1 == layers.size();
        const int padded = round_up(from.outputs, last ? kernels.lanes : kernels.units);
        float* weight = allocate(static_cast<size_t>(padded) * from.inputs);
        float* bias = allocate(round_up(padded, kernels.wide_panel));
        std::fill_n(bias, round_up(padded, kernels.wide_panel), 0.0f);
        std::copy_n(from.bias, from.outputs, bias);
        if (i == 0) {
            Control control;
            control.threads = threads;
            run_parallel(padded / kernels.units, 0, control, [&](size_t panel, float*, KeepRunning&) {
                pack_first(from, static_cast<int>(panel), padded, weight);
            });
        } else {
            std::fill_n(weight, static_cast<size_t>(padded) * from.inputs, 0.0f);
            const int panel = last ? kernels.wide_panel : kernels.units;
            for (int o = 0; o < from.outputs; ++o) {
                const int begin = o / panel * panel, width = std::min(panel, padded - begin);
                float* to = weight + static_cast<size_t>(begin) * from.inputs + (o - begin);
                for (int k = 0; k < from.inputs; ++k)
                    to[static_cast<size_t>(k) * width] =
                        from.weight[static_cast<size_t>(o) * from.inputs + k];
            }
        }
        if (!last) widest = std::max(widest, padded);
        layers_.push_back({from.inputs, from.outputs, padded, weight, bias});
    }
    view_ = {basis_.view(), static_cast<int>(layers.size()) - 1, layers_.data(), widest};
}

// Packs a panel of units, chunk after chunk of orders; (−1)^m turns the kernels' cos(m·lon) into cos(m·φ), φ
// = lon
// + 180°. By panels, because a panel's rows of weights stay in cache while their columns are picked out of
// order.
void NetworkData::pack_first(const DenseLayer& from, int panel, int padded, float* weight) const {
    const HarmonicBasis basis = basis_.view();
    const int units = kernels_.units, degrees = basis.legendre.degrees;
    const int present = std::min(units, from.outputs - panel * units);
    const float* rows = from.weight + static_cast<size_t>(panel) * units * from.inputs;
    for (int c = 0; c < basis.chunks; ++c) {
        const int inputs = basis.chunk_input[c + 1] - basis.chunk_input[c];
        float* to = weight + static_cast<size_t>(basis.chunk_input[c]) * padded +
                    static_cast<size_t>(panel) * inputs * units;
        for (int m = basis.chunk_order[c]; m < basis.chunk_order[c + 1]; ++m) {
            const float sign = m % 2 ? -1.0f : 1.0f;
            const int start = input_of_order(degrees, m) - basis.chunk_input[c];
            for (int l = m; l < degrees; ++l)
                for (int sine = 0; sine <= (m ? 1 : 0); ++sine) {
                    const size_t k = start + input_within_order(degrees, m, l, sine != 0);
                    const size_t feature = static_cast<size_t>(l) * l + l + (sine ? -m : m);
                    for (int u = 0; u < units; ++u)
                        to[k * units + u] =
                            u < present ? sign * rows[static_cast<size_t>(u) * from.inputs + feature] : 0.0f;
                }
        }
    }
}

std::shared_ptr<float> aligned_floats(size_t count) {
    void* p = nullptr;  // posix_memalign, because macOS has aligned_alloc from 10.15 only
    if (posix_memalign(&p, 64, std::max<size_t>(64, count * sizeof(float))) != 0) throw std::bad_alloc();
    return {static_cast<float*>(p), std::free};
}

}  // namespace satclip
