//! The command as its users run it, against an API server in memory, or a real one where that can be.

mod agents;
mod check;
mod rollback;
mod world;
