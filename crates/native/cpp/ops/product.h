// What products with one matrix, with several and with a mixture's experts have in common.

#pragma once

#include <functional>
#include <memory>
#include <optional>

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

// The fewest rows of weights of `n` that are a chunk of work for `m` rows of inputs of `k`.
int chunk_of(long m, long n, long k);

// The products of `x` with the matrices that `chosen` names, of [experts, n, k].
op::array gathered(const op::array& x, const op::array& chosen, const op::Arrays& weights,
                   const Storage& storage, op::Stream stream);

}  // namespace product
