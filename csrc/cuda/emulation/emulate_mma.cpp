// Emulated tensor-core multiplications (mma), lane by lane as the PTX manual lays them out.
#include <algorithm>
#include <cmath>

#include "cuda/bodies/half.h"
#include "host_policy.h"

namespace satclip::cuda {

namespace {

constexpr int kRows = 16, kColumns = 8;
constexpr int kAddendBits = 26;   // of the largest addend's binade that addends keep
constexpr int kStepProducts = 8;  // products that are added in one step, with the sum before them

std::uint64_t exponent_of(double value) { return bits_as<std::uint64_t>(value) >> 52 & 0x7ffu; }
double power_of_two(std::uint64_t biased) { return bits_as<double>(biased << 52); }

// The sum of `before` and the products, as the hardware cuts it.
float cut_sum(float before, const double* product) {
    double largest = std::fabs(before), sum = before;
    for (int i = 0; i < kStepProducts; ++i) {
        largest = std::max(largest, std::fabs(product[i]));
        sum += product[i];
    }
    if (!(sum - sum == 0.0) || largest < 1e-200) return static_cast<float>(sum);
    const std::uint64_t exponent = exponent_of(largest);
    const double scale = power_of_two(2 * 1023 + kAddendBits - 1 -
                                      exponent);  // the largest becomes an integer of kAddendBits bits
    auto units = static_cast<std::int64_t>(before * scale);
    for (int i = 0; i < kStepProducts; ++i) units += static_cast<std::int64_t>(product[i] * scale);
    const double cut = static_cast<double>(units) * power_of_two(exponent - (kAddendBits - 1));
    return static_cast<float>(
        bits_as<double>(bits_as<std::uint64_t>(cut) & ~0x1fffffffull));  // 24 bits are left
}

// c += a · b, `inputs` of them; operand a's rows and b's columns are given as [row or column][input].
template <int Inputs>
void multiply(Sums* c, const float (&a)[kRows][Inputs], const float (&b)[kColumns][Inputs]) {
    for (int lane = 0; lane < kWarp; ++lane)
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + (i / 2) * 8, column = 2 * (lane % 4) + i % 2;
            float sum = c[lane].value[i];
            for (int k = 0; k < Inputs; k += kStepProducts) {
                double product[kStepProducts];
                for (int j = 0; j < kStepProducts; ++j)
                    product[j] = static_cast<double>(a[row][k + j]) * b[column][k + j];
                sum = cut_sum(sum, product);
            }
            c[lane].value[i] = sum;
        }
}

float tf32(std::uint32_t word) { return bits_as<float>(word & 0xffffe000u); }

}  // namespace

void emulate_mma_tf32(Sums* c, const Words* a, const Words* b, int half) {
    float rows[kRows][8], columns[kColumns][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) rows[g + (i % 2) * 8][t + (i / 2) * 4] = tf32(a[lane].word[i]);
        for (int i = 0; i < 2; ++i) columns[g][t + i * 4] = tf32(b[lane].word[2 * half + i]);
    }
    multiply(c, rows, columns);
}

void emulate_mma_f16(Sums* c, const Words* a, const Words* b, int half) {
    float rows[kRows][16], columns[kColumns][16];
    for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int upper = 0; upper < 2; ++upper) {
            const auto value = [upper](std::uint32_t word) {
                return half_value(static_cast<std::uint16_t>(word >> (16 * upper)));
            };
            for (int i = 0; i < 4; ++i)
                rows[g + (i % 2) * 8][2 * t + upper + (i / 2) * 8] = value(a[lane].word[i]);
            for (int i = 0; i < 2; ++i) columns[g][2 * t + upper + i * 8] = value(b[lane].word[2 * half + i]);
        }
    }
    multiply(c, rows, columns);
}

}  // namespace satclip::cuda
