// Memory for intermediate results.

#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <new>

namespace memory {

// Uninitialised floats at the beginning of a cache line: every load of a vector that straddles two
// lines costs double. Throws std::bad_alloc where there is no memory.
class Floats {
 public:
  explicit Floats(long count)
      : data_(static_cast<float*>(::operator new(sizeof(float) * count, kLine))) {}
  ~Floats() { ::operator delete(data_, kLine); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;

  float* data() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  float* data_;
};

// Such memory that pieces of work use one after another, whoever brings them: while a prompt is read, dozens of
// products wait their turn. Whoever uses it holds `in_use`.
struct Shared {
  explicit Shared(long count) : count(count), floats(count) {}

  const long count;
  Floats floats;
  std::mutex in_use;
};

// What was taken last, while somebody has it and it is large enough; else new memory. Throws std::bad_alloc.
inline std::shared_ptr<Shared> share(long count) {
  static std::mutex taking;
  // Never taken down: MLX's threads go on while the process exits.
  static auto* const last = new std::weak_ptr<Shared>;
  const std::lock_guard<std::mutex> guard(taking);
  std::shared_ptr<Shared> found = last->lock();
  if (found == nullptr || found->count < count) *last = found = std::make_shared<Shared>(count);
  return found;
}

}  // namespace memory
