//! What every server of Weir has: a log on standard error, and metrics and readiness over HTTP.
#![forbid(unsafe_code)]

mod http;
mod log;

pub use http::{Admin, bind, serve};
pub use log::LogOptions;
