// Cache-line-aligned memory.
#pragma once

#include <cstddef>
#include <memory>

namespace satclip {
std::shared_ptr<float> aligned_floats(size_t count);
}
