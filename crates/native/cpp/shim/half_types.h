// Included before mlx-c's headers when the Rust declarations are made from them: the C view of the
// 16-bit types that prelude.h defines for C++. Only their width matters; Rust's own types, written
// by hand beside the generated text, take their place.

#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
typedef unsigned short float16_t;
typedef unsigned short bfloat16_t;
