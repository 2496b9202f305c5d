//! Every integration test, in one binary.

mod config;
mod data;
mod golden;
mod io;
mod packing;
mod tiny_task;
