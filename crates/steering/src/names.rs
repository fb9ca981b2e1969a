//! One table for each set of names that people type: the list, `Display` and `FromStr`.

/// `named! { Type: "what it is called" { "name" => Variant, ... } }` gives the type `names()`,
/// `Display` and `FromStr`. Variants after `else` have a name to print, but cannot be asked for.
macro_rules! named {
    ($type:ident: $what:literal {
        $($name:literal => $variant:ident),+ $(,)?
    } $(else { $($other:literal => $hidden:ident),+ $(,)? })?) => {
        impl $type {
            /// Every name that can be asked for, in the order of the help text.
            pub fn names() -> impl ExactSizeIterator<Item = &'static str> {
                [$($name),+].into_iter()
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $name,)+
                    $($(Self::$hidden => $other,)+)?
                })
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => {
                        let known = [$($name),+].join(", ");
                        Err($crate::Error::unknown($what, text, &known))
                    }
                }
            }
        }
    };
}

pub(crate) use named;
