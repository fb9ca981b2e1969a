// Recurrences over one matrix S per head, token by token: S fades, is read under a key and a query, and is
// written to.
//
// For a GPU a prompt is cut into chunks, which become products of matrices. Here that would take more
// operations: the columns of S do not depend on each other, so a few of them stay in the nearest cache while
// all tokens pass, and each token meets them once, for what the one before wrote and for what it reads.

#include <algorithm>
#include <cmath>
#include <optional>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/op.h"
#include "ops/turn.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;
using turn::kLanesOf;

namespace {

// Tokens whose queries and keys are made ready together.
constexpr int kTokens = 64;

// Vectors of columns that tokens pass over at a time, and the most columns in them.
constexpr int kVectors = 2, kMostColumns = kVectors * kLanes;

// What is added to the square of a length that becomes 1.
constexpr float kEps = 1e-6f;

// Tokens that follow each other, as one head meets them.
struct Stretch {
  int tokens;
  int rows;  // of S
  long row;  // from one token's queries to the next one's, and so for keys and, by row, for what is left
  const float *queries, *keys;
  const float* left;   // of S: one number per token, or one per row of S
  const float* own;    // query · key
  const float* rates;  // or null: values are written as they are
  bool by_row;
};

// Some columns of S as [rows, columns], and the values and outputs of the same ones.
struct Columns {
  int count;
  float* s;
  const float* values;
  long values_row;
  float* to;
  long to_row;
};

template <typename Vector, bool kByRow, bool kDelta>
INLINE void pass_tokens(const Stretch& it, const Columns& columns) {
  constexpr int kSide = kLanesOf<Vector>, kWidth = kVectors * kSide;
  const int rows = it.rows;
  float* const s = columns.s;
  float ends[kWidth] = {};
  const float* before = it.keys;
  Vector change[kVectors] = {};
  for (int token = 0; token < it.tokens; ++token) {
    const float *query = it.queries + token * it.row, *key = it.keys + token * it.row;
    const float* left = it.left + (kByRow ? token * it.row : token);
    Vector by_query[kVectors] = {}, by_key[kVectors] = {};
    const float all_left = *left;
    for (int i = 0; i < rows; ++i) {
      const float wrote = before[i], q = query[i], k = key[i], is_left = kByRow ? left[i] : all_left;
      for (int n = 0; n < kVectors; ++n) {
        float* at = s + i * kWidth + n * kSide;
        const Vector now = (load_as<Vector>(at) + wrote * change[n]) * is_left;
        by_query[n] += q * now;
        if (kDelta) by_key[n] += k * now;
        std::memcpy(at, &now, sizeof now);
      }
    }
    const float* values = columns.values + token * columns.values_row;
    float* to = columns.to + token * columns.to_row;
    const bool all = columns.count == kWidth;
    if (!all) std::copy_n(values, columns.count, ends);
    for (int n = 0; n < kVectors; ++n) {
      const Vector value = load_as<Vector>((all ? values : ends) + n * kSide);
      change[n] = kDelta ? (value - by_key[n]) * it.rates[token] : value;
      const Vector output = by_query[n] + it.own[token] * change[n];
      std::memcpy((all ? to : ends) + n * kSide, &output, sizeof output);
    }
    if (!all) std::copy_n(ends, columns.count, to);
    before = key;
  }
  for (int i = 0; i < rows; ++i) {
    for (int n = 0; n < kVectors; ++n) {
      float* at = s + i * kWidth + n * kSide;
      const Vector now = load_as<Vector>(at) + before[i] * change[n];
      std::memcpy(at, &now, sizeof now);
    }
  }
}

template <typename Vector>
INLINE void pass_all(const Stretch& it, const Columns& columns) {
  if (it.by_row)
    return it.rates ? pass_tokens<Vector, true, true>(it, columns)
                    : pass_tokens<Vector, true, false>(it, columns);
  return it.rates ? pass_tokens<Vector, false, true>(it, columns)
                  : pass_tokens<Vector, false, false>(it, columns);
}

FOR_WIDE
void pass_wide(const Stretch& it, const Columns& columns) { pass_all<Lanes>(it, columns); }

FOR_EACH_PROCESSOR
void pass_narrow(const Stretch& it, const Columns& columns) { pass_all<Half>(it, columns); }

int width() { return kVectors * (is_wide() ? kLanes : kLanes / 2); }

// What a whole head's output is multiplied by, where products may cancel each other, is added up in double. Zeros fill
// `room`, a multiple of sixteen.
INLINE double product_of(const float* a, const float* b, int room) {
  using Doubles = double __attribute__((vector_size(8 * 8)));
  const auto wide = [](const float* x) { return __builtin_convertvector(load_as<Half>(x), Doubles); };
  Doubles products{};
  for (int i = 0; i < room; i += 8) products += wide(a + i) * wide(b + i);
  double sum = 0;
  for (int lane = 0; lane < 8; ++lane) sum += products[lane];
  return sum;
}

// Copies numbers to where zeros follow them as far as a whole vector, and gives them this length unless it is 0.
FOR_EACH_PROCESSOR
void copy_vector(const float* from, int count, float length, float* to, int room) {
  std::copy_n(from, count, to);
  std::fill(to + count, to + room, 0.0f);
  if (length == 0) return;
  const float scale = static_cast<float>(length / std::sqrt(product_of(to, to, room) + kEps));
  for (int i = 0; i < room; i += kLanes) store(to + i, load(to + i) * scale);
}

FOR_EACH_PROCESSOR
float product(const float* a, const float* b, int room) {
  return static_cast<float>(product_of(a, b, room));
}

FOR_EACH_PROCESSOR
void powers(float* x, int room) {
  for (int i = 0; i < room; i += kLanes) store(x + i, exp(load(x + i)));
}

class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, bool unit)
      : queries_(inputs[0]),
        keys_(inputs[1]),
        values_(inputs[2]),
        decays_(inputs[3]),
        state_(inputs[4]),
        unit_(unit),
        to_(outputs[0].data<float>()),
        end_(outputs[1].data<float>()),
        room_((queries_.shape(3) + kLanes - 1) / kLanes * kLanes),
        scratch_(workers::count() * own()) {
    if (inputs.size() > 5) rates_.emplace(inputs[5]);
  }

  void run() {
    queries_.ready();
    keys_.ready();
    values_.ready();
    decays_.ready();
    state_.ready();
    if (rates_) rates_->ready();
    const long heads = values_.shape(2);
    workers::share(static_cast<int>(values_.shape(0) * heads), [&](int chunk, int worker) {
      do_head(chunk / heads, chunk % heads, scratch_.data() + worker * own());
    });
  }

 private:
  // Scratch of one worker: queries, keys, what is left, three numbers per token, and columns of S.
  long own() const { return 3 * kTokens * room_ + 3 * kTokens + room_ * kMostColumns; }

  void do_head(long batch, long head, float* scratch) {
    const long tokens = values_.shape(1), heads = values_.shape(2), size = values_.shape(3);
    const int rows = static_cast<int>(queries_.shape(3)), wide = width();
    float* const end = end_ + (batch * heads + head) * rows * size;
    float* const s = scratch + 3 * kTokens * room_ + 3 * kTokens;
    for (long first = 0; first < tokens; first += kTokens) {
      const int count = static_cast<int>(std::min<long>(kTokens, tokens - first));
      const Stretch stretch = ready(batch, head, first, count, scratch);
      for (long column = 0; column < size; column += wide) {
        const int columns = static_cast<int>(std::min<long>(wide, size - column));
        for (int i = 0; i < rows; ++i) {
          const float* from = first == 0 ? state_.at(batch, head, i) : end + i * size;
          std::fill(std::copy_n(from + column, columns, s + i * wide), s + (i + 1) * wide, 0.0f);
        }
        const Columns its{columns,
                          s,
                          values_.at(batch, first, head) + column,
                          values_.step(1),
                          to_ + ((batch * tokens + first) * heads + head) * size + column,
                          heads * size};
        (is_wide() ? pass_wide : pass_narrow)(stretch, its);
        for (int i = 0; i < rows; ++i) std::copy_n(s + i * wide, columns, end + i * size + column);
      }
    }
  }

  Stretch ready(long batch, long head, long first, int count, float* scratch) const {
    const int rows = static_cast<int>(queries_.shape(3)), room = static_cast<int>(room_);
    const long key_head = head / (values_.shape(2) / queries_.shape(2));
    const bool by_row = decays_.shape(3) > 1;
    float *queries = scratch, *keys = queries + kTokens * room_, *left = keys + kTokens * room_;
    float *own = left + kTokens * room_, *rates = own + kTokens;
    const float root = 1 / std::sqrt(static_cast<float>(rows));
    for (int i = 0; i < count; ++i) {
      float *query = queries + i * room_, *key = keys + i * room_;
      copy_vector(queries_.at(batch, first + i, key_head), rows, unit_ ? root : 0, query, room);
      copy_vector(keys_.at(batch, first + i, key_head), rows, unit_ ? 1 : 0, key, room);
      own[i] = product(query, key, room);
      const float* decay = decays_.at(batch, first + i, head);
      if (by_row) copy_vector(decay, rows, 0, left + i * room_, room);
      else left[i] = *decay;
      if (rates_) rates[i] = *rates_->at(batch, first + i, head);
    }
    powers(left, by_row ? count * room : (count + kLanes - 1) / kLanes * kLanes);
    return {count, rows, room_, queries, keys, left, own, rates_ ? rates : nullptr, by_row};
  }

  layout::Heads<float> queries_, keys_, values_, decays_, state_;
  std::optional<layout::Heads<float>> rates_;
  bool unit_;
  float *to_, *end_;
  long room_;
  memory::Floats scratch_;
};

// Token by token as well: for gradients, where nobody asked for those of chunks.
op::Arrays composed(const op::Arrays& inputs, bool unit) {
  using namespace mlx::core;
  const auto &values = inputs[2];
  const int tokens = values.shape(1), groups = values.shape(2) / inputs[0].shape(2);
  const auto ready = [&](array x, float length) {
    if (unit) x = x * (rsqrt(sum(square(x), -1, true) + array(kEps)) * array(length));
    return repeat(x, groups, 2);
  };
  const array queries = ready(inputs[0], 1 / std::sqrt(static_cast<float>(inputs[0].shape(3))));
  const array keys = ready(inputs[1], 1);
  array s = inputs[4];
  op::Arrays outputs;
  for (int at = 0; at < tokens; ++at) {
    // [batch, heads, numbers]
    const auto one = [at](const array& of) { return take(of, at, 1); };
    const array key = expand_dims(one(keys), -1);
    s = s * expand_dims(exp(one(inputs[3])), -1);
    array change = one(values);
    if (inputs.size() > 5) change = (change - sum(s * key, -2)) * one(inputs[5]);
    s = s + key * expand_dims(change, -2);
    outputs.push_back(sum(s * expand_dims(one(queries), -1), -2));
  }
  return {stack(outputs, 1), s};
}

op::Arrays recurrence(const op::Arrays& inputs, bool unit, op::Stream stream) {
  const auto in_parts = [unit](const op::Arrays& inputs) { return composed(inputs, unit); };
  return op::make_all({"Recurrence", {inputs[2].shape(), inputs[4].shape()}, op::task<Task>(unit), in_parts},
                      inputs, stream);
}

}  // namespace

const char* mlxgk_recurrence(mlx_array* results, mlx_array queries, mlx_array keys, mlx_array values,
                             mlx_array log_decays, mlx_array state, mlx_array rates, bool unit,
                             mlx_stream stream) {
  return op::give_all(results, [&] {
    op::Arrays inputs{op::of(queries),    op::of(keys),  op::of(values),
                      op::of(log_decays), op::of(state)};
    if (rates.ctx != nullptr) inputs.push_back(op::of(rates));
    return recurrence(inputs, unit, op::of(stream));
  });
}
