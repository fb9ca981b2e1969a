#include "ops/turn.h"

namespace {

using namespace turn;

template <typename Vector>
INLINE void turn_all(const float* from, long from_row, int count, int length, float* to) {
  constexpr int kSide = kLanesOf<Vector>, kWidth = 2 * kSide;
  for (int row = 0; row < kWidth; row += kSide, from += kSide * from_row, to += kSide) {
    int done = 0;
    if (row + kSide <= count)
      for (; done + kSide <= length; done += kSide)
        square<Vector>(from + done, from_row, to + done * kWidth, kWidth);
    for (; done < length; ++done)
      for (int i = 0; i < kSide; ++i)
        to[done * kWidth + i] = row + i < count ? from[i * from_row + done] : 0.0f;
  }
}

FOR_WIDE
void turn_wide(const float* from, long from_row, int count, int length, float* to) {
  turn_all<Lanes>(from, from_row, count, length, to);
}

FOR_EACH_PROCESSOR
void turn_narrow(const float* from, long from_row, int count, int length, float* to) {
  turn_all<Half>(from, from_row, count, length, to);
}

}  // namespace

void turn::floats(const float* from, long from_row, int count, int length, float* to) {
  (is_wide() ? turn_wide : turn_narrow)(from, from_row, count, length, to);
}
