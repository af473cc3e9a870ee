//! `weir-cni`: run by the container runtime, with the configuration on standard input.
#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    process::ExitCode,
};

use weir_cni::{config::MAX_CONFIG, plugin};

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin()
        .lock()
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut input);
    let environment = |name: &str| std::env::var(name).ok();
    let outcome = plugin::run(environment, read.map(|_| input));
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    // A runtime that reads no answer is not there any more.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    code
}
