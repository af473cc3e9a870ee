//! The messages and services that Weir speaks, generated from `proto/protos`.

#![forbid(unsafe_code)]
