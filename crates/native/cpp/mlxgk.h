// The operations of this library, for C and for the tool that declares them to Rust. This is the only
// place where they are declared.
//
// Each puts a new array behind `result`, or as many as it has behind `results`, which must be empty handles,
// and returns null; or it returns a message, to be read before the thread's next call, and leaves the handles
// alone. All arrays are fp32 unless something else is said here. Their shapes must be as described, which the
// Rust side checks (src/native.rs); how they lie in memory does not matter.

#pragma once

#include <stdbool.h>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"

#ifdef __cplusplus
extern "C" {
#endif

// Softmax attention. `queries` is [batch, heads, tokens, dim]; `keys` and `values` are
// [batch, groups, columns, dim], and `groups` divides `heads`. `seen` is an empty handle, or booleans
// of four axes, each of them 1 or that of [batch, heads, tokens, columns]. With `causal` there is a
// column for every token, and the last token sees all of them. With `soft_cap` 0 there is none.
const char* mlxgk_attention(mlx_array* result, mlx_array queries, mlx_array keys, mlx_array values,
                            mlx_array seen, float scale, bool causal, float soft_cap,
                            mlx_stream stream);

// The same on packed keys and values in MLX's affine mode, both packed alike: u32 `keys` and `values`
// are [batch, groups, columns, dim · bits / 32], scales and biases fp32, fp16 or bf16 [batch, groups,
// columns, dim / group_size]. `group_size` is a multiple of 16.
const char* mlxgk_packed_attention(mlx_array* result, mlx_array queries, mlx_array keys,
                                   mlx_array key_scales, mlx_array key_biases, mlx_array values,
                                   mlx_array value_scales, mlx_array value_biases, mlx_array seen,
                                   int group_size, int bits, float scale, bool causal,
                                   float soft_cap, mlx_stream stream);

// x / sqrt(mean(x²) + eps) · weight over the last axis of `x`. `weight` is [that axis].
const char* mlxgk_rms_norm(mlx_array* result, mlx_array x, mlx_array weight, float eps,
                           mlx_stream stream);

// x · cos + rotate_half(x) · sin on the first 2 · half dimensions of `x`, [batch, heads, tokens, dim].
// `cos` is [batch or 1, 1, tokens, 1, half]; `sin` is [the same, 1, tokens, 2, half], once with a
// minus sign and once without.
const char* mlxgk_rotate(mlx_array* result, mlx_array x, mlx_array cos, mlx_array sin,
                         mlx_stream stream);

// Heads of `count` arrays of [batch, tokens, heads · dim], each with heads of its own number, as [batch,
// heads, tokens, dim]: through mlxgk_rms_norm, with a weight of [dim] for each array where `weights` is not
// null, and rotated as by mlxgk_rotate.
const char* mlxgk_turned_heads(mlx_array* results, const mlx_array* xs, const mlx_array* weights,
                               int count, float eps, mlx_array cos, mlx_array sin, int dim,
                               mlx_stream stream);

// silu(gate) · up, or without `silu` sigmoid(gate) · up, for two arrays of one shape and at least one axis.
const char* mlxgk_gate(mlx_array* result, mlx_array gate, mlx_array up, bool silu,
                       mlx_stream stream);

// A convolution of each channel by itself: y_t = bias + Σ_i weight_i · x_(t - width + 1 + i), and silu of
// that with `silu`. `x` is [batch, tokens, channels], `before`, what precedes it, [batch, width - 1,
// channels], `weight` [width, channels], and `bias` [channels] or an empty handle.
const char* mlxgk_causal_convolution(mlx_array* result, mlx_array x, mlx_array before,
                                     mlx_array weight, mlx_array bias, bool silu,
                                     mlx_stream stream);

// Recurrences over a matrix S per head: S ← e^decay · S, then S ← S + k vᵀ, or with `rates`
// S ← S + k rate (v - Sᵀk)ᵀ, and Sᵀq is the output. `queries` and `keys` are [batch, tokens, key heads, key
// dim], `values` [batch, tokens, heads, value dim], where key heads divide heads and consecutive heads
// share one; there is a token at least. `log_decays` are [batch, tokens, heads, 1], or [.., key dim] where
// each row of S fades by itself; `rates` are [batch, tokens, heads, 1] or an empty handle. `state` is what S is
// before, [batch, heads, key dim, value dim]; the results are the outputs, of the shape of `values`, and S after the
// last token. With `unit` queries and keys are brought to length 1 first, x / sqrt(Σ x² + 1e-6), and queries then
// divided by the root of key dim.
const char* mlxgk_recurrence(mlx_array* results, mlx_array queries, mlx_array keys, mlx_array values,
                             mlx_array log_decays, mlx_array state, mlx_array rates, bool unit,
                             mlx_stream stream);

// For each row of `logits`, [rows, vocabulary], the log-probability of the id that u32 `ids`, [rows],
// holds: logit - log Σ e^logit. Where there is no such id, it is NaN.
const char* mlxgk_token_logprobs(mlx_array* result, mlx_array logits, mlx_array ids,
                                 mlx_stream stream);

// Which experts each token of `logits`, [.., experts], is fed to: u32 [.., chosen], the best first, and behind them
// how much each counts, [.., chosen]. A logit is `cap · tanh(logit / cap)` first, where `cap` is not 0, and a score
// is the softmax of it with `scores` 0, itself with 1, and the sigmoid with 2. Chosen are the highest of the scores
// and, where it is no empty handle, `correction` of [1.., experts] together; of equal ones the first. They are in the
// `kept` of `groups` equal groups whose `judged_by` highest have the largest sums. What an expert counts is its
// score, or with `scores` 1 the softmax over those of the chosen; with `normalise` over the sum of all plus `epsilon`,
// which is `least_sum` at least where that is not 0; and times `scale`.
const char* mlxgk_route(mlx_array* results, mlx_array logits, mlx_array correction, int scores,
                        int chosen, int groups, int kept, int judged_by, bool normalise,
                        float epsilon, float least_sum, float scale, float cap, mlx_stream stream);

// x · weight', for `x` of [.., in] and bf16 `weight` of [out, in]. With `chosen`, which is an empty
// handle or u32 of any axes, `weight` is [experts, out, in] and `x` [axes.., rows, in], where some of
// the axes that `chosen` has may be 1: every place of `chosen` names the matrix that its rows meet, and
// the result is [axes.., rows, out]. Where there is no such matrix, it is NaN. With `shares`, an empty handle or
// floats like `chosen`, `x` is [axes.., in], and the products of the last of the axes are added up, each times its
// share: [axes but the last.., out].
const char* mlxgk_widening_product(mlx_array* result, mlx_array x, mlx_array weight,
                                   mlx_array chosen, mlx_array shares, mlx_stream stream);

// x · weight' for `count` bf16 matrices of [out, in], one result for each. With `gated` there are two of
// one shape, and one result: silu(x · first') · (x · second'). With `chosen`, which may be an empty handle, they
// are gated and of [experts, out, in]; `x` is [axes but the last.., in], and the result [axes.., out]. A single
// matrix then has the rows of the first before those of the second.
const char* mlxgk_widening_products(mlx_array* results, mlx_array x, const mlx_array* weights,
                                    int count, bool gated, mlx_array chosen, mlx_stream stream);

// x · weight' with packed weights of [out, in] or [experts, out, in]. `mode` is 0 for affine, 1 for mxfp4,
// 2 for mxfp8, 3 for nvfp4. `words` is u32 [.., out, in · bits / 32]. In the affine mode `scales` and
// `biases` are fp32 or bf16 [.., out, in / group_size]; in the others `scales` is u8 and `biases` an
// empty handle. `group_size` is a multiple of 16 that divides `in`.
const char* mlxgk_packed_product(mlx_array* result, mlx_array x, mlx_array words, mlx_array scales,
                                 mlx_array biases, mlx_array chosen, mlx_array shares, int mode,
                                 int group_size, int bits, mlx_stream stream);

// The same for `count` matrices that are packed alike, as for mlxgk_widening_products. `weights` has words,
// scales and, in the affine mode, biases of each in turn.
const char* mlxgk_packed_products(mlx_array* results, mlx_array x, const mlx_array* weights,
                                  int count, bool gated, mlx_array chosen, int mode, int group_size,
                                  int bits, mlx_stream stream);

#ifdef __cplusplus
}
#endif
