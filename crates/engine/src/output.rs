//! Writes the rows of a query: for people, for scripts, for other tools. All of it streams, in bounded memory.

mod arrow;
mod cell;
mod csv;
mod json;
mod parquet;
mod table;

pub use self::arrow::write_arrow;
pub use csv::write_csv;
pub use json::{json_rows, write_json, write_json_lines};
pub use parquet::write_parquet;
pub use table::{Shown, TableLayout, write_table};

pub(crate) use cell::row_text;
