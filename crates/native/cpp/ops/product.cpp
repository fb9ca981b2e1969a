// Products with weights as they are stored: with one matrix, and with several that the same inputs meet.
//
// A few rows meet the weights in registers, which read them once. Many rows are worth turning the
// weights around, a block at a time.

#include "ops/product.h"

#include <algorithm>
#include <vector>

#include "mlxgk.h"
#include "ops/few_rows.h"
#include "ops/gate.h"
#include "ops/layout.h"
#include "ops/many_rows.h"
#include "ops/memory.h"
#include "ops/workers.h"
#include "shim/blas.h"

using namespace product;

namespace {

// The fewest rows of weights of `n` that are a chunk of work for `m` rows of inputs of `k`.
int chunk_of(long m, long n, long k) {
  // It takes a core a few microseconds, several times as long as handing it over.
  const long products = std::clamp<long>(m * n * k / 16, 1 << 16, 1 << 18);
  const long most = std::max<long>(products / std::max<long>(m * k, 1), 1);
  const long rows = (n + workers::chunks(n, most) - 1) / std::max(workers::chunks(n, most), 1);
  return static_cast<int>(std::min<long>((rows + 23) / 24 * 24, n));
}

// Which products one operation computes of its inputs.
struct Several {
  // How many matrices there are, all stored alike.
  int count = 1;
  // Whether there are two of one shape, and silu(y[0]) · y[1] is all that is asked for.
  bool gated = false;
};

// y[i] = x·w[i]', x of m × k, w[i] of n[i] × k.
class Product {
 public:
  Product(const op::Arrays& inputs, op::Arrays& outputs, const Make& make, const Several& several)
      : parts_(parts(inputs, outputs, make, several)),
        gated_(several.gated),
        x_(inputs[0]),
        k_(inputs[0].shape(-1)),
        m_(rows_of(inputs[0].shape())),
        x_row_(whole(parts_[0].weights->room())),
        bounds_(chunks_for(m_, rows_together(), gated_ ? 2 * k_ : k_)),
        few_(is_few() ? m_ * x_row_ : 0),
        up_(gated_ ? up_room() : 0),
        many_(is_few() ? nullptr : memory::share(many_rows::scratch(m_, k_))) {}

  void run() {
    x_.ready();
    for (const Part& part : parts_) part.weights->ready();
    if (k_ == 0) {
      for (const Part& part : parts_) std::fill_n(part.y, static_cast<long>(m_) * part.rows, 0.0f);
    } else if (is_few()) {
      few();
    } else {
      many();
    }
  }

 private:
  // A matrix, and where the products of its rows go.
  struct Part {
    std::unique_ptr<matrix::Matrix> weights;
    int rows;
    float* y;
  };

  static std::vector<Part> parts(const op::Arrays& inputs, op::Arrays& outputs, const Make& make,
                                 const Several& several) {
    std::vector<Part> parts;
    const auto each = (inputs.size() - 1) / several.count;
    for (int i = 0; i < several.count; ++i) {
      const auto first = inputs.begin() + 1 + i * each;
      parts.push_back({make({first, first + each}), first->shape(-2),
                       outputs[several.gated ? 0 : i].data<float>()});
    }
    return parts;
  }

  static int rows_of(const mlx::core::Shape& x) {
    int rows = 1;
    for (std::size_t axis = 0; axis + 1 < x.size(); ++axis) rows *= x[axis];
    return rows;
  }

  bool is_few() const { return m_ <= few_rows::kMost; }

  // The rows that are met at a time: those of all matrices one behind another, or pairs of one of each.
  int rows_together() const {
    if (gated_) return parts_[0].rows;
    int rows = 0;
    for (const Part& part : parts_) rows += part.rows;
    return rows;
  }

  // What products with the second matrix of a pair take: of a chunk for each thread, or of all rows.
  long up_room() const {
    if (!is_few()) return static_cast<long>(m_) * parts_[1].rows;
    return static_cast<long>(workers::count()) * up_of_chunk();
  }
  long up_of_chunk() const {
    int longest = 0;
    for (std::size_t i = 1; i < bounds_.size(); ++i)
      longest = std::max(longest, bounds_[i] - bounds_[i - 1]);
    return whole(static_cast<long>(m_) * longest);
  }

  void few() {
    for (int row = 0; row < m_; ++row)
      parts_[0].weights->arrange(x_.at(row), few_.data() + row * x_row_);
    workers::share(static_cast<int>(bounds_.size()) - 1, [&](int chunk, int worker) {
      int from = bounds_[chunk], end = bounds_[chunk + 1];
      if (gated_) return meet_pair(from, end - from, up_.data() + worker * up_of_chunk());
      for (const Part& part : parts_) {
        const int first = std::max(from, 0), count = std::min(end, part.rows) - first;
        if (count > 0) meet(part, first, count, part.y + first, part.rows);
        from -= part.rows;
        end -= part.rows;
      }
    });
  }

  void meet(const Part& part, int from, int count, float* y, long y_row) const {
    part.weights->multiply(m_, few_.data(), x_row_, from, count, y, y_row);
  }

  void meet_pair(int from, int count, float* up) const {
    const long rows = parts_[0].rows;
    float* y = parts_[0].y + from;
    meet(parts_[0], from, count, y, rows);
    meet(parts_[1], from, count, up, count);
    for (int i = 0; i < m_; ++i) gate::row(y + i * rows, up + i * count, y + i * rows, count);
  }

  void many() {
    const std::lock_guard<std::mutex> guard(many_->in_use);
    for (const Part& part : parts_) {
      float* y = gated_ && &part != parts_.data() ? up_.data() : part.y;
      many_rows::multiply(m_, part.rows, k_, {x_.data(), x_.row(), false}, *part.weights, 0, y,
                          part.rows, false, many_->floats.data());
    }
    if (!gated_) return;
    const long rows = parts_[0].rows;
    float* y = parts_[0].y;
    workers::share(m_, [&](int i, int) {
      gate::row(y + i * rows, up_.data() + i * rows, y + i * rows, static_cast<int>(rows));
    });
  }

  std::vector<Part> parts_;
  bool gated_;
  layout::Rows<float> x_;
  int k_, m_;
  long x_row_;
  std::vector<int> bounds_;
  // Inputs of a few rows, arranged; what is gated; what a product of many takes.
  memory::Floats few_, up_;
  std::shared_ptr<memory::Shared> many_;
};

// The gradient by x, by·w, from that by y, of m × n. Rows of weights become floats, a panel at a time.
class Descent {
 public:
  Descent(const op::Arrays& inputs, op::Arrays& outputs, const Make& make)
      : weights_(make({inputs.begin() + 1, inputs.end() - 1})),
        by_(inputs.back()),
        by_x_(outputs[0].data<float>()),
        n_(inputs.back().shape(-1)),
        k_(inputs[0].shape(-1)),
        m_(static_cast<int>(outputs[0].size() / k_)),
        most_(static_cast<int>(std::clamp<long>(kPanel / std::max(k_, 1), 1, std::max(n_, 1)))),
        panel_(static_cast<long>(most_) * k_) {}

  void run() {
    by_.ready();
    weights_->ready();
    if (n_ == 0) std::fill_n(by_x_, static_cast<long>(m_) * k_, 0.0f);
    for (int from = 0; from < n_; from += most_) {
      const int count = std::min(most_, n_ - from);
      widen(from, count);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m_, k_, count, 1, by_.data() + from,
                  static_cast<int>(by_.row()), panel_.data(), k_, from > 0 ? 1 : 0, by_x_, k_);
    }
  }

 private:
  // Weights in a panel, and in a chunk of it that a thread widens.
  static constexpr long kPanel = 1 << 20;
  static constexpr long kChunk = 1 << 16;

  void widen(int first, int count) {
    const int share = static_cast<int>(std::max(1l, kChunk / k_));
    workers::share(workers::chunks(count, share), [&](int chunk, int) {
      const int end = std::min(count, (chunk + 1) * share);
      for (int row = chunk * share; row < end; ++row)
        weights_->widen(first + row, 0, k_, panel_.data() + static_cast<long>(row) * k_);
    });
  }

  std::unique_ptr<matrix::Matrix> weights_;
  layout::Rows<float> by_;
  float* by_x_;
  int n_, k_, m_, most_;
  memory::Floats panel_;
};

// The product of `x` with a matrix.
op::array with_one(const op::array& x, const op::Arrays& weights, const Storage& storage,
                   op::Stream stream) {
  op::Arrays inputs{x};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  const auto in_mlx = [composed = storage.composed](const op::Arrays& inputs) {
    return op::Arrays{composed(inputs[0], {inputs.begin() + 1, inputs.end()}, std::nullopt)};
  };
  auto out = x.shape();
  out.back() = weights[0].shape(-2);
  op::Gradient gradient{"ProductGradient", 1, op::task<Descent>(storage.make)};
  return op::make({"Product", {out}, op::task<Product>(storage.make, Several{}), in_mlx, gradient},
                  std::move(inputs), stream);
}

// The products of `x` with several matrices, whose arrays follow one another. Gradients are those of the
// products one by one.
op::Arrays with_several(const op::array& x, const op::Arrays& weights, const Several& several,
                        const Storage& storage, op::Stream stream) {
  const auto each = weights.size() / several.count;
  const auto one_by_one = [=](const op::Arrays& inputs) {
    op::Arrays ys;
    for (int i = 0; i < several.count; ++i) {
      const auto first = inputs.begin() + 1 + i * each;
      ys.push_back(with_one(inputs[0], {first, first + each}, storage, stream));
    }
    return several.gated ? op::Arrays{gate::silu(ys[0], ys[1], stream)} : ys;
  };
  std::vector<mlx::core::Shape> shapes;
  for (int i = 0; i < (several.gated ? 1 : several.count); ++i) {
    shapes.push_back(x.shape());
    shapes.back().back() = weights[i * each].shape(-2);
  }
  op::Arrays inputs{x};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  return op::make_all({"Products", std::move(shapes), op::task<Product>(storage.make, several),
                       one_by_one},
                      std::move(inputs), stream);
}

Storage in_bf16() {
  using namespace mlx::core;
  const auto composed = [](const array& x, const op::Arrays& weights,
                           const std::optional<array>& chosen) {
    const array columns = swapaxes(astype(weights[0], float32), -1, -2);
    return chosen ? gather_mm(x, columns, std::nullopt, chosen) : matmul(x, columns);
  };
  const auto make = [](const op::Arrays& weights) { return matrix::of_bf16(weights[0]); };
  return {make, composed};
}

Storage packed_as(const matrix::Packing& packing) {
  using namespace mlx::core;
  const auto composed = [packing](const array& x, const op::Arrays& weights,
                                  const std::optional<array>& chosen) {
    static const char* const kModes[] = {"affine", "mxfp4", "mxfp8", "nvfp4"};
    const bool affine = weights.size() > 2;
    const array scales = affine ? astype(weights[1], float32) : weights[1];
    std::optional<array> biases;
    if (affine) biases = astype(weights[2], float32);
    const auto [mode, group, bits] = packing;
    return chosen ? gather_qmm(x, weights[0], scales, biases, std::nullopt, chosen, true, group,
                               bits, kModes[mode])
                  : quantized_matmul(x, weights[0], scales, biases, true, group, bits, kModes[mode]);
  };
  const auto make = [packing](const op::Arrays& weights) {
    return matrix::of_packed(weights, packing);
  };
  return {make, composed};
}

// The product with a matrix, or with those that `chosen` names where there is such a handle.
op::array with(const op::array& x, const op::Arrays& weights, const mlx_array& chosen,
               const mlx_array& shares, const Storage& storage, op::Stream stream) {
  if (chosen.ctx == nullptr) return with_one(x, weights, storage, stream);
  if (shares.ctx == nullptr) return gathered(x, op::of(chosen), weights, storage, stream);
  return mixed(x, op::of(chosen), op::of(shares), weights, storage, stream);
}

// The products with several matrices, or the gated ones with those that `chosen` names.
op::Arrays with_all(const op::array& x, const op::Arrays& weights, const Several& several,
                    const mlx_array& chosen, const Storage& storage, op::Stream stream) {
  if (chosen.ctx == nullptr) return with_several(x, weights, several, storage, stream);
  return {gathered_gate(x, op::of(chosen), weights, several.count, storage, stream)};
}

}  // namespace

std::vector<int> product::chunks_for(int m, int n, int k) {
  const int least = chunk_of(m, n, k);
  std::vector<int> bounds{n};
  while (bounds.back() > 0) {
    const int left = bounds.back(), share = (left / workers::count() + 23) / 24 * 24;
    bounds.push_back(std::max(left - std::max(share, least), 0));
  }
  std::reverse(bounds.begin(), bounds.end());
  return bounds;
}

const char* mlxgk_widening_product(mlx_array* result, mlx_array x, mlx_array weight,
                                   mlx_array chosen, mlx_array shares, mlx_stream stream) {
  return op::give(result, [&] {
    return with(op::of(x), {op::of(weight)}, chosen, shares, in_bf16(), op::of(stream));
  });
}

const char* mlxgk_widening_products(mlx_array* results, mlx_array x, const mlx_array* weights,
                                    int count, bool gated, mlx_array chosen, mlx_stream stream) {
  return op::give_all(results, [&] {
    return with_all(op::of(x), op::all_of(weights, count), {count, gated}, chosen, in_bf16(),
                    op::of(stream));
  });
}

const char* mlxgk_packed_product(mlx_array* result, mlx_array x, mlx_array words, mlx_array scales,
                                 mlx_array biases, mlx_array chosen, mlx_array shares, int mode,
                                 int group_size, int bits, mlx_stream stream) {
  return op::give(result, [&] {
    op::Arrays weights{op::of(words), op::of(scales)};
    if (biases.ctx != nullptr) weights.push_back(op::of(biases));
    return with(op::of(x), weights, chosen, shares, packed_as({mode, group_size, bits}),
                op::of(stream));
  });
}

const char* mlxgk_packed_products(mlx_array* results, mlx_array x, const mlx_array* weights,
                                  int count, bool gated, mlx_array chosen, int mode, int group_size,
                                  int bits, mlx_stream stream) {
  return op::give_all(results, [&] {
    const int arrays = (mode == matrix::kAffine ? 3 : 2) * count;
    return with_all(op::of(x), op::all_of(weights, arrays), {count, gated}, chosen,
                    packed_as({mode, group_size, bits}), op::of(stream));
  });
}
