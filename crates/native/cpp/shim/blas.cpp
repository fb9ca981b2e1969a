// The matrix products that libmlx takes from BLAS, computed by functions of our own or by OpenBLAS.
//
// libmlx brings the reference BLAS, which is slow (about 6 GFLOP/s against more than 100). It looks
// these three functions up by name, and the loader searches this library before the reference one,
// so it finds them here. OpenBLAS comes from a Python package that puts `scipy_` before its names.
//
// A product with a single row or column goes to OpenBLAS's matrix-vector function: its general
// product copies the whole matrix into blocks first, which for one row costs more than the product.
// That is the shape of every weight product while a token is decoded. For the same reason a few rows,
// a batch or a search with beams, go to a function of our own. So do many, of which reading a prompt and
// training consist: OpenBLAS's threads, which look for work long after a product, must not take the cores
// from ours.

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <optional>
#include <thread>

#include "ops/few_rows.h"
#include "ops/many_rows.h"
#include "ops/memory.h"
#include "ops/workers.h"
#include "shim/blas.h"

namespace {

// Process exit. MLX's threads go on computing while the process exits, and OpenBLAS, which then takes
// its own threads and tables down, crashes or waits for ever if a product comes in between. The loader
// ends this library before OpenBLAS, since it depends on it. At that point products are closed: those
// that are running are finished, and later ones are not computed. Nobody is left to read them.
std::atomic<bool> closed{false};
std::atomic<long> running{0};

class Call {
 public:
  Call() { ++running; }
  ~Call() { --running; }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  bool is_too_late() const { return closed; }
};

[[gnu::destructor]] void close_at_exit() {
  // In this order: a call that is counted after the wait has ended finds products closed.
  closed = true;
  while (running != 0) std::this_thread::yield();
}

inline void gemv(CBLAS_TRANSPOSE trans, int rows, int columns, float alpha, const float* a, int lda,
                 const float* x, int x_step, float beta, float* y, int y_step) {
  scipy_cblas_sgemv(CblasRowMajor, trans, rows, columns, alpha, a, lda, x, x_step, beta, y, y_step);
}

inline void gemv(CBLAS_TRANSPOSE trans, int rows, int columns, double alpha, const double* a,
                 int lda, const double* x, int x_step, double beta, double* y, int y_step) {
  scipy_cblas_dgemv(CblasRowMajor, trans, rows, columns, alpha, a, lda, x, x_step, beta, y, y_step);
}

bool is_transposed(CBLAS_TRANSPOSE trans) { return trans == CblasTrans || trans == CblasConjTrans; }

// Answers c = alpha·a·b + beta·c as a matrix-vector product where it is one, and says whether it was.
template <typename Real>
bool one_row_or_column(CBLAS_ORDER order, CBLAS_TRANSPOSE a_trans, CBLAS_TRANSPOSE b_trans, int m,
                       int n, int k, Real alpha, const Real* a, int lda, const Real* b, int ldb,
                       Real beta, Real* c, int ldc) {
  // With nothing to sum over, a matrix-vector function returns before it scales its result.
  if (order != CblasRowMajor || k == 0 || (m != 1 && n != 1)) return false;
  const bool a_plain = !is_transposed(a_trans), b_plain = !is_transposed(b_trans);
  if (m == 1) {
    // c' = b'·a', with b as it lies in memory: k x n, or n x k when transposed.
    gemv(b_plain ? CblasTrans : CblasNoTrans, b_plain ? k : n, b_plain ? n : k, alpha, b, ldb, a,
         a_plain ? 1 : lda, beta, c, 1);
  } else {
    gemv(a_plain ? CblasNoTrans : CblasTrans, a_plain ? m : k, a_plain ? k : m, alpha, a, lda, b,
         b_plain ? ldb : 1, beta, c, ldc);
  }
  return true;
}

// Multiplications that a core does in some tens of microseconds. It does them alone: once another of OpenBLAS's threads
// has helped, it looks for work for milliseconds, on the cores that ours compute on.
constexpr double kAlone = 1 << 22;

// How many of `OneThread` live, and how many threads OpenBLAS had before the first of them.
std::mutex alone;
int count_alone = 0, threads_before = 0;

// A matrix of n × k.
class OfRows : public turn::Weights {
 public:
  OfRows(const float* data, long row) : data_(data), row_(row) {}

  void turn(long row, int count, int from, int length, float*, float* to) const override {
    turn::floats(data_ + row * row_ + from, row_, count, length, to, turn::width());
  }

 private:
  const float* data_;
  long row_;
};

// A matrix of k × n, which lies turned.
class OfColumns : public turn::Weights {
 public:
  OfColumns(const float* data, long row) : data_(data), row_(row) {}

  void turn(long row, int count, int from, int length, float*, float* to) const override {
    const int width = turn::width();
    for (int i = 0; i < length; ++i)
      std::copy_n(data_ + (from + i) * row_ + row, count, to + i * width);
  }

 private:
  const float* data_;
  long row_;
};

// c = a·b, or c += a·b with `add`, of m × k and k × n, if there is memory for it.
bool many(int m, int n, int k, const many_rows::Inputs& a, const turn::Weights& b, float* c, int ldc,
          bool add) try {
  const memory::Floats scratch(many_rows::scratch(m, k));
  many_rows::multiply(m, n, k, a, b, 0, c, ldc, add, scratch.data());
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

}  // namespace

blas::OneThread::OneThread() {
  const Call call;
  const std::lock_guard<std::mutex> lock(alone);
  if (count_alone++ > 0 || call.is_too_late()) return;
  threads_before = scipy_openblas_get_num_threads();
  scipy_openblas_set_num_threads(1);
}

blas::OneThread::~OneThread() {
  const Call call;
  const std::lock_guard<std::mutex> lock(alone);
  if (--count_alone == 0 && !call.is_too_late()) scipy_openblas_set_num_threads(threads_before);
}

extern "C" {

void cblas_sgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE a_trans, CBLAS_TRANSPOSE b_trans, int m, int n,
                 int k, float alpha, const float* a, int lda, const float* b, int ldb, float beta,
                 float* c, int ldc) {
  const Call call;
  if (call.is_too_late()) return;
  if (one_row_or_column(order, a_trans, b_trans, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
    return;
  const bool a_turned = is_transposed(a_trans), b_turned = is_transposed(b_trans);
  if (order == CblasRowMajor && alpha == 1 && (beta == 0 || beta == 1) && m > 0 && n > 0 && k > 0) {
    if (b_turned && !a_turned && beta == 0 && m <= few_rows::kMost)
      return few_rows::multiply(m, n, k, a, lda, b, ldb, c, ldc);
    const many_rows::Inputs inputs{a, lda, a_turned};
    if (b_turned ? many(m, n, k, inputs, OfRows(b, ldb), c, ldc, beta == 1)
                 : many(m, n, k, inputs, OfColumns(b, ldb), c, ldc, beta == 1))
      return;
  }
  std::optional<blas::OneThread> one_thread;
  // The threads of workers.h are as many as OpenBLAS's, so they are there first.
  if (workers::count() > 1 && static_cast<double>(m) * n * k <= kAlone) one_thread.emplace();
  scipy_cblas_sgemm(order, a_trans, b_trans, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void cblas_dgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE a_trans, CBLAS_TRANSPOSE b_trans, int m, int n,
                 int k, double alpha, const double* a, int lda, const double* b, int ldb,
                 double beta, double* c, int ldc) {
  const Call call;
  if (call.is_too_late()) return;
  if (one_row_or_column(order, a_trans, b_trans, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
    return;
  scipy_cblas_dgemm(order, a_trans, b_trans, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void cblas_cgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE a_trans, CBLAS_TRANSPOSE b_trans, int m, int n,
                 int k, const void* alpha, const void* a, int lda, const void* b, int ldb,
                 const void* beta, void* c, int ldc) {
  const Call call;
  if (call.is_too_late()) return;
  scipy_cblas_cgemm(order, a_trans, b_trans, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // extern "C"
