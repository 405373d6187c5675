//! `pg_catalog` and what else clients of the PostgreSQL protocol ask the catalog: the same list of tables, told as PostgreSQL
//! tells it.
//!
//! What never changes (types, operators, functions of PostgreSQL 16) comes from `datafusion-pg-catalog`. What depends on the
//! lake is made here: that crate numbers objects anew for each list, and ours differ by who asks.

mod array;
mod functions;
mod prune;
mod rewrite;
mod spelling;
mod tables;
mod types;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::{DataType, Field, FieldRef, SchemaRef},
    catalog::{CatalogProvider, MemTable, MemoryCatalogProvider, TableProvider},
    datasource::TableType,
    error::{DataFusionError, Result},
    execution::{SessionState, SessionStateBuilder},
    logical_expr::planner::TypePlanner,
    prelude::SessionContext,
    sql::sqlparser::ast::{ArrayElemTypeDef, DataType as SqlType},
};
use datafusion_pg_catalog::pg_catalog::{
    PG_CATALOG_TABLES, PgCatalogSchemaProvider, PgCatalogStaticTables, catalog_info::CatalogInfo,
    context::EmptyContextProvider, oid_field::OID_ALIAS_KEY, oid_type_planner::PgOidTypePlanner,
};

use crate::{
    Listed,
    guard::{self, ValueLimits},
    resolve::CATALOG,
    types::Times,
};

pub use array::array_items;
pub(crate) use functions::session_function;
pub(crate) use rewrite::{Rewritten, column_names, names_catalog, parse_postgres, reads_catalog_alone, reads_nothing};
pub(crate) use tables::information_names;
pub use types::{PgType, pg_type};

/// The schema that PostgreSQL's catalog is in.
pub(crate) const PG_CATALOG: &str = "pg_catalog";

/// What `version()` says.
pub const PG_VERSION: &str = concat!("PostgreSQL 16.0 (Headworks ", env!("CARGO_PKG_VERSION"), ")");

/// A session of the PostgreSQL protocol, for what SQL may ask about it. With it, a statement is read as PostgreSQL reads it:
/// `pg_catalog` is there, `::regclass` and `= ANY (...)` work, unnamed columns have PostgreSQL's names.
#[derive(Debug, Clone, Default)]
pub struct PgSession {
    /// The number by which the client knows the session.
    pub pid: i32,
    /// Its parameters by their lowercase names, for `current_setting`.
    pub settings: HashMap<String, String>,
    /// The names of its open cursors, for `pg_cursors`.
    pub cursors: Vec<String>,
}

/// The object ids of tables: given once in a process and kept, also when somebody sees fewer tables than others.
#[derive(Default)]
pub(crate) struct Oids(Mutex<HashMap<String, i32>>);

/// PostgreSQL's first id for objects that users made.
const FIRST_OID: i32 = 16_384;

impl Oids {
    fn of(&self, name: &str) -> i32 {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = ids.get(name) {
            return *id;
        }
        let id = i32::try_from(ids.len()).map_or(i32::MAX, |n| FIRST_OID.saturating_add(n));
        ids.insert(name.to_owned(), id);
        id
    }
}

/// Tables and functions of PostgreSQL; built once for an engine.
pub(crate) struct PgCatalog {
    unchanging: PgCatalogSchemaProvider<Nothing, EmptyContextProvider>,
    oids: Oids,
}

impl PgCatalog {
    pub(crate) fn new() -> Result<Self> {
        let tables = Arc::new(PgCatalogStaticTables::try_new()?);
        let unchanging = PgCatalogSchemaProvider::try_new(Nothing, tables, EmptyContextProvider)?;
        Ok(Self { unchanging, oids: Oids::default() })
    }

    /// One table of `pg_catalog` over the tables that the caller sees; none when there is no such table.
    pub(crate) fn table(
        &self,
        name: &str,
        listed: &[Listed],
        user: &str,
        session: &PgSession,
    ) -> Result<Option<Arc<dyn TableProvider>>> {
        if let Some(batch) = tables::table(name, listed, &self.oids, user, session)? {
            return Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)));
        }
        match self.unchanging.build_table_by_name(name)? {
            None => Ok(None),
            Some(table) if prune::EMPTY.contains(&name) => {
                Ok(Some(Arc::new(MemTable::try_new(table.schema(), vec![Vec::new()])?)))
            }
            Some(table) => table.try_into_table_provider().map(Some),
        }
    }
}

/// The names of its tables, for a hint.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PG_CATALOG_TABLES.iter().copied().chain(tables::MORE)
}

/// Adds PostgreSQL's functions and type names to a session.
pub(crate) fn with_functions(state: &SessionState, limits: ValueLimits) -> Result<SessionState> {
    let context = SessionContext::new_with_state(state.clone());
    let catalog: Arc<dyn CatalogProvider> = Arc::new(MemoryCatalogProvider::new());
    context.register_catalog(CATALOG, catalog);
    datafusion_pg_catalog::setup_pg_catalog(&context, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
    // What a session has already is held to the limits: the library's functions of the same names are not.
    let set_up = context.state();
    for (name, own) in state.scalar_functions() {
        if set_up.scalar_functions().get(name).is_none_or(|other| !Arc::ptr_eq(own, other)) {
            context.register_udf(own.as_ref().clone());
        }
    }
    for function in functions::all() {
        context.register_udf(function);
    }
    context.register_udf(guard::held_items(array::array_in(), limits));
    // The one that `setup_pg_catalog` has put the catalog into goes again: our planner looks names up by itself.
    let catalogs = Arc::clone(state.catalog_list());
    Ok(SessionStateBuilder::new_from_existing(context.state()).with_catalog_list(catalogs).build())
}

/// Reads `regclass`, `oid` and `pg_catalog.text` as types.
pub(crate) fn type_planner() -> Arc<dyn TypePlanner> {
    Arc::new(Types)
}

/// The library's type names, and arrays of object ids, which clients are told of as such.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        if let Some(time) = Times.plan_type_field(sql_type)? {
            return Ok(Some(time));
        }
        let element = match sql_type {
            SqlType::Array(
                ArrayElemTypeDef::SquareBracket(element, _)
                | ArrayElemTypeDef::AngleBracket(element)
                | ArrayElemTypeDef::Parenthesis(element),
            ) => element,
            // PostgreSQL's type of names, without its schema.
            SqlType::Custom(name, _) if name.to_string().eq_ignore_ascii_case("name") => {
                return Ok(Some(Arc::new(Field::new("", DataType::Utf8, true))));
            }
            other => return PgOidTypePlanner.plan_type_field(other),
        };
        if element.to_string().to_lowercase().trim_start_matches("pg_catalog.") != "oid" {
            return Ok(None);
        }
        let metadata = [(OID_ALIAS_KEY.to_owned(), "oid".to_owned())].into();
        let item = Field::new_list_field(DataType::Int32, true).with_metadata(metadata);
        Ok(Some(Arc::new(Field::new("", DataType::List(Arc::new(item)), true))))
    }
}

/// One table of `information_schema` as PostgreSQL has it; none when there is no such table.
pub(crate) fn information(name: &str, listed: &[Listed]) -> Result<Option<Arc<dyn TableProvider>>> {
    let Some(batch) = tables::information(name, listed)? else { return Ok(None) };
    Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
}

/// A catalog of no tables: what the library would list, we do.
#[derive(Debug, Clone)]
struct Nothing;

#[async_trait]
impl CatalogInfo for Nothing {
    async fn catalog_names(&self) -> Result<Vec<String>, DataFusionError> {
        Ok(Vec::new())
    }

    async fn schema_names(&self, _catalog: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        Ok(None)
    }

    async fn table_names(&self, _catalog: &str, _schema: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        Ok(None)
    }

    async fn table_schema(&self, _: &str, _: &str, _: &str) -> Result<Option<SchemaRef>, DataFusionError> {
        Ok(None)
    }

    async fn table_type(&self, _: &str, _: &str, _: &str) -> Result<Option<TableType>, DataFusionError> {
        Ok(None)
    }
}
