// What products with one matrix, with several and with a mixture's experts have in common.

#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "ops/matrix.h"
#include "ops/op.h"

namespace product {

// A matrix of the arrays that hold it.
using Make = std::function<std::unique_ptr<matrix::Matrix>(const op::Arrays& weights)>;

// What is multiplied by `weights`, in MLX's own operations.
using Composed = std::function<op::array(const op::array& x, const op::Arrays& weights,
                                         const std::optional<op::array>& chosen)>;

// How weights are stored.
struct Storage {
  Make make;
  Composed composed;
};

// Rows begin at multiples of 64 bytes.
inline long whole(long count) { return (count + 15) / 16 * 16; }

// Where chunks of `n` rows of weights begin and end, for `m` rows of inputs of `k`. Memory is read fastest as long
// streams, so a thread is given its share of all that is left; chunks become shorter towards the first, which is
// given out last, so that all threads end together.
std::vector<int> chunks_for(int m, int n, int k);

// The products of `x` with the matrices that `chosen` names, of [experts, n, k].
op::array gathered(const op::array& x, const op::array& chosen, const op::Arrays& weights,
                   const Storage& storage, op::Stream stream);

// silu(x · gate') · (x · up') with those of each row of `x`, of `count` in `weights`: gate and up, or one whose rows
// are those of gate before those of up.
op::array gathered_gate(const op::array& x, const op::array& chosen, const op::Arrays& weights,
                        int count, const Storage& storage, op::Stream stream);

// The products along the last axis of `chosen`, of a row of `x` each, times their shares and added up.
op::array mixed(const op::array& x, const op::array& chosen, const op::array& shares,
                const op::Arrays& weights, const Storage& storage, op::Stream stream);

}  // namespace product
