// Contrastive loss: packing, and the order in which pairs of blocks are visited.
//
// Rows are cut in R blocks, columns in C. In step d = 0, 1, … row block I meets column block (I + d) mod
// max(R, C), where there is one: within a step all pairs are disjoint, so each adds to the sums of its rows
// and columns without locks or copies, and a block's pairs come in the order of their steps. Nothing waits
// for a whole step to end; a pair waits for the former pair of its row block and of its column block.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "rounding.h"
#include "satclip.h"

namespace satclip {

namespace {

// At least so many blocks each way, where there are rows enough: as many threads can be busy. With 32, blocks
// are so small that at N = 4096 one thread does 40 G multiply-adds a second of backward, not 47 (Zen 4).
constexpr size_t kTargetBlocks = 16;
// Columns of a block, at least: sums over fewer cost more to store than to make, and more leave small batches
// fewer blocks for threads. Backward at N = 256, one thread of a Zen 4: 1.15 ms, 1.27 with 16, 1.15 with 256.
constexpr size_t kMinBlockColumns = 64;

struct Cut {
    size_t tile, panel;            // rows in them
    size_t tiles, panels;          // in all
    size_t row_tiles, col_panels;  // in a block
    size_t row_blocks, column_blocks;

    Cut(const LossKernels& kernels, const Contrast& c)
        : tile(kernels.tile),
          panel(kernels.panel),
          tiles(ceil_div(c.rows, tile)),
          panels(ceil_div(c.columns, panel)) {
        const size_t max_panels = kernels.max_panels;
        row_tiles = std::clamp<size_t>(tiles / kTargetBlocks, 1, kernels.max_tiles);
        col_panels =
            std::clamp(panels / kTargetBlocks, std::min(max_panels, kMinBlockColumns / panel), max_panels);
        row_blocks = ceil_div(tiles, row_tiles);
        column_blocks = ceil_div(panels, col_panels);
    }

    LossBlock block(size_t row, size_t column) const {
        const size_t t = row * row_tiles, p = column * col_panels;
        return {static_cast<int>(t), static_cast<int>(std::min(row_tiles, tiles - t)), static_cast<int>(p),
                static_cast<int>(std::min(col_panels, panels - p))};
    }
};

// Calls body(row block, column block, scratch) for all pairs; false when interrupted.
template <class Body>
bool run_pairs(const Cut& cut, size_t scratch, const Control& control, Body&& body) {
    const size_t steps = std::max(cut.row_blocks, cut.column_blocks);
    std::vector<std::atomic<size_t>> row_steps(steps), column_steps(steps);  // done of each
    return run_parallel(
        steps * steps, scratch, control, [&](size_t item, float* memory, KeepRunning& keep_running) {
            // Items are taken in order, so what this one waits for has been taken by a thread that is at
            // work.
            const size_t step = item / steps, row = item % steps, column = (row + step) % steps;
            while (row_steps[row].load(std::memory_order_acquire) != step ||
                   column_steps[column].load(std::memory_order_acquire) != step) {
                if (!keep_running()) return;
                std::this_thread::yield();
            }
            if (row < cut.row_blocks && column < cut.column_blocks) body(row, column, memory);
            row_steps[row].store(step + 1, std::memory_order_release);
            column_steps[column].store(step + 1, std::memory_order_release);
        });
}

// rows[first..first+count) of `embed` elements → out[element][width], zero for missing rows.
void pack_group(const float* rows, size_t first, size_t count, size_t embed, size_t width, float* out) {
    for (size_t i = 0; i < width; ++i) {
        const float* row = rows + (first + i) * embed;
        for (size_t e = 0; e < embed; ++e) out[e * width + i] = i < count ? row[e] : 0.0f;
    }
}

// The same rows → their part of chunks of `tile` elements, each [all rows][width in whole vectors].
void pack_chunks(const float* rows, size_t first, size_t count, size_t total, const Contrast& c,
                 const LossKernels& kernels, float* out) {
    const size_t tile = kernels.tile, lanes = kernels.lanes;
    for (size_t begin = 0; begin < c.embed; begin += tile) {
        const size_t present = std::min(tile, c.embed - begin), width = round_up(present, lanes);
        for (size_t i = first; i < first + count; ++i) {
            float* to = out + begin * total + i * width;
            std::copy_n(rows + i * c.embed + begin, present, to);
            std::fill(to + present, to + width, 0.0f);
        }
    }
}

// The operands of the kernels and the memory that holds them.
struct Packed {
    LossOperands view;
    std::vector<std::shared_ptr<float>> memory;
    float *tiles, *panels, *a_chunks = nullptr, *b_chunks = nullptr;

    Packed(const LossKernels& kernels, const Contrast& c, const Cut& cut, bool chunks) {
        const size_t padded = round_up<size_t>(c.embed, kernels.lanes);
        tiles = allocate(cut.tiles * cut.tile * c.embed);
        panels = allocate(cut.panels * cut.panel * c.embed);
        if (chunks) {
            a_chunks = allocate(c.rows * padded);
            b_chunks = allocate(c.columns * padded);
        }
        view = {static_cast<int>(c.rows),
                static_cast<int>(c.columns),
                static_cast<int>(c.embed),
                static_cast<float>(c.scale),
                static_cast<ptrdiff_t>(c.offset),
                tiles,
                panels,
                a_chunks,
                b_chunks};
    }

    float* allocate(size_t floats) {
        memory.push_back(aligned_floats(floats));
        return memory.back().get();
    }

    bool fill(const LossKernels& kernels, const Contrast& c, const Cut& cut, const Control& control) {
        return run_parallel(
            cut.row_blocks + cut.column_blocks, 0, control, [&](size_t item, float*, KeepRunning&) {
                const bool of_a = item < cut.row_blocks;
                const size_t block = of_a ? item : item - cut.row_blocks;
                const size_t width = of_a ? cut.tile : cut.panel,
                             in_block = of_a ? cut.row_tiles : cut.col_panels;
                const float* rows = of_a ? c.a : c.b;
                const size_t total = of_a ? c.rows : c.columns, begin = block * in_block * width;
                const size_t end = std::min(total, begin + in_block * width);
                for (size_t first = begin; first < end; first += width)
                    pack_group(rows, first, std::min(width, end - first), c.embed, width,
                               (of_a ? tiles : panels) + first * c.embed);
                if (a_chunks)
                    pack_chunks(rows, begin, end - begin, total, c, kernels, of_a ? a_chunks : b_chunks);
            });
    }
};

// log-sum-exp of `count` items, of which `in_group` at a time lie `slots` apart.
void write_log_sum_exp(const float* running_max, const float* sum, size_t count, size_t in_group,
                       size_t slots, float* lse) {
    for (size_t i = 0; i < count; ++i) {
        const size_t offset = i / in_group * slots + i % in_group;
        lse[i] = static_cast<float>(running_max[offset] + std::log(static_cast<double>(sum[offset])));
    }
}

}  // namespace

bool loss_forward(const Kernels& instruction_set, const Contrast& c, float* row_lse, float* column_lse,
                  float* partner, const Control& control) {
    const LossKernels& kernels = *instruction_set.loss;
    const Cut cut(kernels, c);
    Packed packed(kernels, c, cut, false);
    if (!packed.fill(kernels, c, cut, control)) return false;
    const size_t rows = cut.tiles * cut.tile, columns = cut.panels * kernels.slots;
    const LossSums sums = {packed.allocate(rows), packed.allocate(rows), packed.allocate(columns),
                           packed.allocate(columns), partner};
    std::fill_n(sums.row_max, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(sums.row_sum, rows, 0.0f);
    std::fill_n(sums.column_max, columns, -std::numeric_limits<float>::infinity());
    std::fill_n(sums.column_sum, columns, 0.0f);
    const bool finished = run_pairs(cut, 0, control, [&](size_t row, size_t column, float*) {
        kernels.forward(packed.view, cut.block(row, column), sums);
    });
    if (!finished) return false;
    write_log_sum_exp(sums.row_max, sums.row_sum, c.rows, cut.tile, cut.tile, row_lse);
    write_log_sum_exp(sums.column_max, sums.column_sum, c.columns, cut.panel, kernels.slots, column_lse);
    return true;
}

bool loss_backward(const Kernels& instruction_set, const Contrast& c, const float* row_lse,
                   const float* column_lse, double factor, float* da, float* db, double* dscale,
                   const Control& control) {
    const LossKernels& kernels = *instruction_set.loss;
    const Cut cut(kernels, c);
    Packed packed(kernels, c, cut, true);
    if (!packed.fill(kernels, c, cut, control)) return false;
    std::fill_n(da, c.rows * c.embed, 0.0f);
    std::fill_n(db, c.columns * c.embed, 0.0f);
    const size_t rows = cut.tiles * cut.tile, columns = cut.panels * cut.panel;
    float *row_padded = packed.allocate(rows), *column_padded = packed.allocate(columns);
    std::fill(std::copy_n(row_lse, c.rows, row_padded), row_padded + rows, 0.0f);
    std::fill(std::copy_n(column_lse, c.columns, column_padded), column_padded + columns, 0.0f);
    const LossGradient gradient = {row_padded, column_padded, static_cast<float>(factor * c.scale), da, db};
    const size_t scratch = cut.row_tiles * cut.tile * cut.col_panels * cut.panel;
    std::vector<double> row_dscale(cut.row_blocks, 0.0);
    const bool finished = run_pairs(cut, scratch, control, [&](size_t row, size_t column, float* memory) {
        row_dscale[row] += kernels.backward(packed.view, cut.block(row, column), gradient, memory);
    });
    if (!finished) return false;
    *dscale = 0.0;
    for (const double sum : row_dscale) *dscale += factor * sum;
    return true;
}

}  // namespace satclip
