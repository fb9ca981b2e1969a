// The matrix product of blas.cpp, for the other files of this library.

#pragma once

#include "cblas.h"

extern "C" void cblas_sgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE a_trans, CBLAS_TRANSPOSE b_trans,
                            int m, int n, int k, float alpha, const float* a, int lda,
                            const float* b, int ldb, float beta, float* c, int ldc);

namespace blas {

// While one of these lives, OpenBLAS computes each product of this process on its caller's thread alone:
// for those who share work among threads themselves, whose chunks share nothing else (workers.h). A number
// of threads that is set meanwhile is lost.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
};

}  // namespace blas
