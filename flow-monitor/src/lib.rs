//! How the `weir` command shows things, for other programs that show the same.
#![forbid(unsafe_code)]

pub mod line;
pub mod style;
