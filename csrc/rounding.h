// Integer division rounded up, and rounding up to a multiple.
#pragma once

namespace satclip {

template <class T>
constexpr T ceil_div(T n, T divisor) {
    return (n + divisor - 1) / divisor;
}

template <class T>
constexpr T round_up(T n, T multiple) {
    return ceil_div(n, multiple) * multiple;
}

}  // namespace satclip
