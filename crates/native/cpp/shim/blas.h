// The matrix product of blas.cpp, for the other files of this library.

#pragma once

#include "cblas.h"

extern "C" void cblas_sgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE a_trans, CBLAS_TRANSPOSE b_trans,
                            int m, int n, int k, float alpha, const float* a, int lda,
                            const float* b, int ldb, float beta, float* c, int ldc);
