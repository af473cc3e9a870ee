//! End-to-end tests. Each asserts what someone outside would see: what an application got, what the wire carried, which
//! flow was recorded.
#![allow(missing_docs)]

mod paths;
