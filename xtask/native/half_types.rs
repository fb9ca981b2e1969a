/// The bits of an IEEE half-precision number.
#[repr(transparent)]
#[derive(Debug, Default, Copy, Clone)]
pub struct float16_t(pub u16);

/// The bits of a bfloat16 number. An alias, because mlx-rs reads it as a plain integer.
pub type bfloat16_t = u16;
