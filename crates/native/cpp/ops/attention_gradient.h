// The gradient of attention by queries, keys and values.

#pragma once

#include <optional>

#include "ops/op.h"

namespace attention {

// For inputs of queries, keys, values and, as a fourth, what may be seen: see mlxgk.h.
op::Gradient gradient(float scale, bool causal, std::optional<float> soft_cap);

}  // namespace attention
