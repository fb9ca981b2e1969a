#![doc = include_str!("../README.md")]

mod page;
mod plot;
mod table;

pub use self::page::{Page, escaped};
pub use self::plot::{Bar, Line, bars, lines};
pub use self::table::Table;
