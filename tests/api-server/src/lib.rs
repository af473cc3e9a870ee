//! A Kubernetes API server in memory, for tests.

#![forbid(unsafe_code)]
