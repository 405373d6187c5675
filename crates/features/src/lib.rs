//! Names the features of the heavy dependencies, so that `cargo build -p headworks-lake` and `cargo build --workspace` build
//! the same arrow, parquet and DataFusion: with fewer features each crate alone would compile its own, eight CPU-minutes each.
//!
//! It holds no code, and no other crate says anything about features.
