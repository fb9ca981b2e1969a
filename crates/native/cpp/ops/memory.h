// Memory for intermediate results.

#pragma once

#include <cstddef>
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

}  // namespace memory
