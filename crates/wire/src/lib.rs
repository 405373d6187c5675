//! Protocols of databases over the query service: PostgreSQL's, for everything that speaks to a PostgreSQL server, and Arrow
//! Flight SQL.
//!
//! It deliberately knows no accounts (the binary brings [`postgres::Accounts`]), plans nothing, and writes nothing to the lake.
//!
//! [`postgres::Service`] and [`flight`] are the servers; the former behaves as its [`postgres::Options`] say and is looked at
//! through its [`postgres::Handle`].

pub mod flight;
pub mod postgres;
