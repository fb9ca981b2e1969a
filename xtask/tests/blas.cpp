// Compares the BLAS functions of libmlxc.so with plain loops; prints the first difference.

#include <algorithm>
#include <complex>
#include <cstdio>
#include <limits>
#include <vector>

enum Order { RowMajor = 101 };
enum Transpose { NoTrans = 111, Trans = 112, ConjTrans = 113 };

using Complex = std::complex<float>;

extern "C" {
void cblas_sgemm(Order, Transpose, Transpose, int, int, int, float, const float*, int, const float*,
                 int, float, float*, int);
void cblas_dgemm(Order, Transpose, Transpose, int, int, int, double, const double*, int,
                 const double*, int, double, double*, int);
void cblas_cgemm(Order, Transpose, Transpose, int, int, int, const void*, const void*, int,
                 const void*, int, const void*, void*, int);
}

namespace {

void gemm(Transpose ta, Transpose tb, int m, int n, int k, float alpha, const float* a, int lda,
          const float* b, int ldb, float beta, float* c, int ldc) {
  cblas_sgemm(RowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(Transpose ta, Transpose tb, int m, int n, int k, double alpha, const double* a, int lda,
          const double* b, int ldb, double beta, double* c, int ldc) {
  cblas_dgemm(RowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(Transpose ta, Transpose tb, int m, int n, int k, Complex alpha, const Complex* a, int lda,
          const Complex* b, int ldb, Complex beta, Complex* c, int ldc) {
  cblas_cgemm(RowMajor, ta, tb, m, n, k, &alpha, a, lda, b, ldb, &beta, c, ldc);
}

// Small whole numbers: their products and sums are exact in every type, so equality is exact too.
template <typename T>
std::vector<T> numbers(int count, unsigned seed) {
  std::vector<T> values(count);
  for (T& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<T>(static_cast<float>(static_cast<int>(seed >> 24) % 9 - 4));
  }
  return values;
}

// One product. The row lengths are `slack` longer than they need be.
template <typename T>
bool agrees(const char* type, Transpose ta, Transpose tb, int m, int n, int k, float alpha,
            float beta, int slack) {
  const int lda = std::max(1, ta == NoTrans ? k : m) + slack;
  const int ldb = std::max(1, tb == NoTrans ? n : k) + slack;
  const int ldc = n + slack;
  const auto a = numbers<T>((ta == NoTrans ? m : k) * lda, 1);
  const auto b = numbers<T>((tb == NoTrans ? k : n) * ldb, 2);
  auto c = numbers<T>(m * ldc, 3);
  // With beta = 0 the old content must not count, whatever it is.
  if (beta == 0)
    for (T& value : c) value = std::numeric_limits<float>::quiet_NaN();
  auto expected = c;
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      T sum = 0;
      for (int i = 0; i < k; ++i)
        sum += (ta == NoTrans ? a[row * lda + i] : a[i * lda + row]) *
               (tb == NoTrans ? b[i * ldb + column] : b[column * ldb + i]);
      T& old = expected[row * ldc + column];
      old = static_cast<T>(alpha) * sum + (beta == 0 ? T(0) : static_cast<T>(beta) * old);
    }
  }
  gemm(ta, tb, m, n, k, static_cast<T>(alpha), a.data(), lda, b.data(), ldb, static_cast<T>(beta),
       c.data(), ldc);
  for (int i = 0; i < m * ldc; ++i) {
    const bool padding = i % ldc >= n;  // must be left as it was, NaN included
    const bool same = c[i] == expected[i] || (padding && c[i] != c[i] && expected[i] != expected[i]);
    if (same) continue;
    std::printf("%s, %d x %d x %d, transposed %d %d, alpha %g, beta %g, slack %d: element %d\n",
                type, m, n, k, ta == Trans, tb == Trans, alpha, beta, slack, i);
    return false;
  }
  return true;
}

}  // namespace

int main() {
  int products = 0;
  // Large enough for OpenBLAS to share the work between threads.
  for (const auto tb : {NoTrans, Trans}) {
    if (!agrees<float>("float", NoTrans, tb, 1, 3000, 1000, 1, 0, 0) ||
        !agrees<float>("float", NoTrans, tb, 300, 200, 100, 1, 0, 0))
      return 1;
    products += 2;
  }
  // Every number of rows that is done by few_rows.cpp, in several chunks, with rows that end inside a
  // vector; and inputs too long for its buffer on the stack.
  for (int m = 2; m <= 17; ++m) {
    if (!agrees<float>("float", NoTrans, Trans, m, 1500, 333, 1, 0, 3) ||
        !agrees<float>("float", NoTrans, Trans, m, 50, 5000, 1, 0, 0))
      return 1;
    products += 2;
  }
  // Every number of rows that many_rows.cpp does at a time and one more, in several stretches and bands,
  // with columns that fill no block.
  for (const auto ta : {NoTrans, Trans})
    for (const auto tb : {NoTrans, Trans})
      for (const float beta : {0.0f, 1.0f}) {
        for (int m = 17; m <= 31; ++m)
          if (!agrees<float>("float", ta, tb, m, 75, 600, 1, beta, 3)) return 1;
        if (!agrees<float>("float", ta, tb, 1030, 40, 257, 1, beta, 0)) return 1;
        products += 16;
      }
  for (const int m : {1, 2, 5, 33})
    for (const int n : {1, 2, 5, 33})
      for (const int k : {0, 1, 7, 70})
        for (const auto ta : {NoTrans, Trans})
          for (const auto tb : {NoTrans, Trans})
            for (const float alpha : {1.0f, -2.0f})
              for (const float beta : {0.0f, 1.0f, 3.0f})
                for (const int slack : {0, 3}) {
                  if (!agrees<float>("float", ta, tb, m, n, k, alpha, beta, slack) ||
                      !agrees<double>("double", ta, tb, m, n, k, alpha, beta, slack) ||
                      !agrees<Complex>("complex", ta, tb, m, n, k, alpha, beta, slack))
                    return 1;
                  products += 3;
                }
  std::printf("%d products agree\n", products);
}
