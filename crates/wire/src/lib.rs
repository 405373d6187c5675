//! PostgreSQL protocol and Arrow Flight SQL over the query service.

pub mod flight;
