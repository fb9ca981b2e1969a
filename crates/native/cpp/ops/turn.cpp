#include "ops/turn.h"

namespace {

using namespace turn;

template <typename Vector>
INLINE void turn_all(const float* from, long from_row, int count, int length, float* to,
                     long to_row) {
  constexpr int kSide = kLanesOf<Vector>, kWidth = 2 * kSide;
  for (int row = 0; row < kWidth; row += kSide, from += kSide * from_row, to += kSide) {
    int done = 0;
    if (row + kSide <= count)
      for (; done + kSide <= length; done += kSide)
        square<Vector>(from + done, from_row, to + done * to_row, to_row);
    for (; done < length; ++done)
      for (int i = 0; i < kSide; ++i)
        to[done * to_row + i] = row + i < count ? from[i * from_row + done] : 0.0f;
  }
}

FOR_WIDE
void turn_wide(const float* from, long from_row, int count, int length, float* to, long to_row) {
  turn_all<Lanes>(from, from_row, count, length, to, to_row);
}

FOR_EACH_PROCESSOR
void turn_narrow(const float* from, long from_row, int count, int length, float* to,
                 long to_row) {
  turn_all<Half>(from, from_row, count, length, to, to_row);
}

}  // namespace

void turn::floats(const float* from, long from_row, int count, int length, float* to,
                  long to_row) {
  (is_wide() ? turn_wide : turn_narrow)(from, from_row, count, length, to, to_row);
}
