#include "ops/columns.h"

#include <algorithm>
#include <variant>

#include "ops/layout.h"
#include "ops/packed.h"
#include "ops/workers.h"

namespace {

using columns::Floats;

class OfFloats : public columns::Columns {
 public:
  explicit OfFloats(const op::array& array) : array_(array) {}

  void ready() override { array_.ready(); }
  int stretch() const override { return INT_MAX; }
  long scratch(int) const override { return 0; }

  Floats floats(int batch, int head, int from, int, float*) const override {
    return {array_.at(batch, head, from), array_.row()};
  }

  Floats shared_floats(int batch, int head, int from, int count, float* scratch) const override {
    return floats(batch, head, from, count, scratch);
  }

 private:
  layout::Heads<float> array_;
};

// The scales or biases of groups, in whatever type they are.
class OfGroups {
 public:
  explicit OfGroups(const op::array& array) : array_(heads(array)), kind_(kind_of(array)) {}

  void ready() {
    std::visit([](auto& it) { it.ready(); }, array_);
  }

  // Those of `count` columns as floats, in `to` or where they lie.
  Floats floats(int batch, int head, int from, int count, int groups, float* to) const {
    return std::visit(
        [&](const auto& it) -> Floats {
          const auto* at = it.at(batch, head, from);
          if constexpr (std::is_same_v<decltype(at), const float*>) {
            return {at, it.row()};
          } else {
            const auto* bytes = reinterpret_cast<const std::uint8_t*>(at);
            if (it.row() == groups) {
              scales::widen(kind_, bytes, count * groups, to);
            } else {
              for (long i = 0; i < count; ++i)
                scales::widen(kind_, bytes + i * it.row() * sizeof *at, groups, to + i * groups);
            }
            return {to, groups};
          }
        },
        array_);
  }

 private:
  using Stored = std::variant<layout::Heads<float>, layout::Heads<std::uint16_t>>;

  static Stored heads(const op::array& from) {
    if (from.dtype() == mlx::core::float32) return layout::Heads<float>(from);
    return layout::Heads<std::uint16_t>(from);
  }

  static scales::Kind kind_of(const op::array& from) {
    if (from.dtype() == mlx::core::float32) return scales::Kind::kFloat;
    return from.dtype() == mlx::core::float16 ? scales::Kind::kF16 : scales::Kind::kBf16;
  }

  Stored array_;
  scales::Kind kind_;
};

class OfPacked : public columns::Columns {
 public:
  OfPacked(const op::array* arrays, int group, int bits)
      : words_(arrays[0]),
        scales_(arrays[1]),
        biases_(arrays[2]),
        unpack_(packed::unpacking(bits)),
        groups_(arrays[1].shape(3)),
        group_(group),
        dim_(groups_ * group) {}

  void ready() override {
    words_.ready();
    scales_.ready();
    biases_.ready();
  }

  // So many floats stay near by until they are used.
  int stretch() const override { return std::max(8, kStretch / std::max(dim_, 1) / 8 * 8); }

  long scratch(int count) const override { return (dim_ + 2L * groups_) * count; }

  Floats floats(int batch, int head, int from, int count, float* scratch) const override {
    float* const of_groups = scratch + static_cast<long>(count) * dim_;
    unpack(batch, head, from, count, scratch, of_groups);
    return {scratch, dim_};
  }

  Floats shared_floats(int batch, int head, int from, int count, float* scratch) const override {
    float* const of_groups = scratch + static_cast<long>(count) * dim_;
    const int most = stretch();
    workers::share(workers::chunks(count, most), [&](int chunk, int) {
      const long done = static_cast<long>(chunk) * most;
      unpack(batch, head, static_cast<int>(from + done), std::min<long>(most, count - done),
             scratch + done * dim_, of_groups + done * 2 * groups_);
    });
    return {scratch, dim_};
  }

 private:
  static constexpr int kStretch = 4096;

  void unpack(int batch, int head, int from, int count, float* to, float* of_groups) const {
    const Floats scales = scales_.floats(batch, head, from, count, groups_, of_groups);
    const Floats biases = biases_.floats(batch, head, from, count, groups_,
                                         of_groups + static_cast<long>(count) * groups_);
    unpack_({reinterpret_cast<const std::uint8_t*>(words_.at(batch, head, from)), 4L * words_.row(),
             scales.data, biases.data, scales.row, biases.row, groups_, group_},
            count, to);
  }

  layout::Heads<std::uint32_t> words_;
  OfGroups scales_, biases_;
  packed::Unpack unpack_;
  int groups_, group_, dim_;
};

}  // namespace

std::unique_ptr<columns::Columns> columns::of_floats(const op::array& array) {
  return std::make_unique<OfFloats>(array);
}

std::unique_ptr<columns::Columns> columns::of_packed(const op::array* arrays, int group, int bits) {
  return std::make_unique<OfPacked>(arrays, group, bits);
}
