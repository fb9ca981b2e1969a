// The scales of packed numbers become floats a vector at a time.

#include "ops/scales.h"

using namespace vectors;
using namespace scales;

namespace {

template <typename Stored, typename Widen>
INLINE void widen_all(const Stored* from, int count, float* to, const Widen& widen) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, widen(from + i));
  if (i == count) return;
  Stored rest[kLanes] = {};
  float wide[kLanes];
  std::memcpy(rest, from + i, (count - i) * sizeof(Stored));
  store(wide, widen(rest));
  std::memcpy(to + i, wide, (count - i) * sizeof(float));
}

}  // namespace

FOR_EACH_PROCESSOR
void scales::widen(Kind kind, const std::uint8_t* from, int count, float* to) {
  switch (kind) {
    case Kind::kFloat:
      std::memcpy(to, from, count * sizeof(float));
      break;
    case Kind::kBf16:
      widen_all(reinterpret_cast<const Bf16*>(from), count, to,
                [](const Bf16* it) { return load_to<Halves>(it); });
      break;
    case Kind::kF16:
      widen_all(reinterpret_cast<const std::uint16_t*>(from), count, to,
                [](const std::uint16_t* it) { return of_f16(it); });
      break;
    case Kind::kE8m0:
      widen_all(from, count, to,
                [](const std::uint8_t* it) { return of_e8m0(load_as<Bytes>(it)); });
      break;
    case Kind::kE4m3:
      widen_all(from, count, to,
                [](const std::uint8_t* it) { return of_e4m3(load_as<Bytes>(it)); });
      break;
  }
}
