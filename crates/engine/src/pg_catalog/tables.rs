//! The tables of `pg_catalog` and `information_schema` that depend on the lake, as record batches.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{
            ArrayRef, BooleanArray, Float32Array, Int16Array, Int32Array, RecordBatch, StringArray, new_null_array,
        },
        datatypes::{DataType, Field, Schema},
    },
    error::Result,
};
use datafusion_pg_catalog::pg_catalog::oid_field::OID_ALIAS_KEY;

use super::{
    Oids, PgSession,
    types::{PgType, pg_type},
};
use crate::{
    Listed,
    resolve::{CATALOG, INFORMATION_SCHEMA, PG_SCHEMA},
};

/// Tables that the library does not have.
pub(super) const MORE: [&str; 4] = ["pg_user", "pg_cursors", "pg_indexes", "pg_sequences"];

const NAMESPACE_CATALOG: i32 = 11;
const NAMESPACE_PUBLIC: i32 = 2_200;
const NAMESPACE_INFORMATION: i32 = 13_000;
const OWNER: i32 = 10;
const DATABASE: i32 = 5;

/// Tables of PostgreSQL whose ids others are looked up by, as in `classoid = 'pg_class'::regclass`.
const SYSTEM: [(i32, &str); 9] = [
    (1247, "pg_type"),
    (1249, "pg_attribute"),
    (1255, "pg_proc"),
    (1259, "pg_class"),
    (1260, "pg_authid"),
    (1262, "pg_database"),
    (2606, "pg_constraint"),
    (2610, "pg_index"),
    (2615, "pg_namespace"),
];

/// Columns of a table that is being made.
#[derive(Default)]
struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    fn add(mut self, name: &str, array: ArrayRef) -> Self {
        self.fields.push(Field::new(name, array.data_type().clone(), true));
        self.arrays.push(array);
        self
    }

    fn texts<S: Into<String>>(self, name: &str, values: impl IntoIterator<Item = S>) -> Self {
        let values = values.into_iter().map(Into::into);
        self.add(name, Arc::new(StringArray::from_iter_values(values.collect::<Vec<String>>())))
    }

    fn optional(self, name: &str, values: impl IntoIterator<Item = Option<String>>) -> Self {
        self.add(name, Arc::new(values.into_iter().collect::<StringArray>()))
    }

    fn ints(self, name: &str, values: impl IntoIterator<Item = i32>) -> Self {
        self.add(name, Arc::new(Int32Array::from_iter_values(values)))
    }

    fn shorts(self, name: &str, values: impl IntoIterator<Item = i16>) -> Self {
        self.add(name, Arc::new(Int16Array::from_iter_values(values)))
    }

    fn bools(self, name: &str, values: impl IntoIterator<Item = bool>) -> Self {
        self.add(name, Arc::new(values.into_iter().map(Some).collect::<BooleanArray>()))
    }

    /// Object ids, of which clients are told that they are some.
    fn oids(self, name: &str, kind: &str, values: impl IntoIterator<Item = i32>) -> Self {
        let mut columns = self.ints(name, values);
        if let Some(field) = columns.fields.pop() {
            columns.fields.push(field.with_metadata([(OID_ALIAS_KEY.to_owned(), kind.to_owned())].into()));
        }
        columns
    }

    /// The same in every row.
    fn same_text(self, names: &[&str], value: &str) -> Self {
        let rows = self.rows();
        names.iter().fold(self, |columns, name| columns.texts(name, vec![value; rows]))
    }

    fn same_int(self, names: &[&str], value: i32) -> Self {
        let rows = self.rows();
        names.iter().fold(self, |columns, name| columns.ints(name, vec![value; rows]))
    }

    fn same_bool(self, names: &[&str], value: bool) -> Self {
        let rows = self.rows();
        names.iter().fold(self, |columns, name| columns.bools(name, vec![value; rows]))
    }

    fn no_text(self, names: &[&str]) -> Self {
        let rows = self.rows();
        names.iter().fold(self, |columns, name| columns.optional(name, vec![None; rows]))
    }

    /// Lists of texts that are all null.
    fn no_texts(self, names: &[&str]) -> Self {
        let rows = self.rows();
        let list = DataType::new_list(DataType::Utf8, true);
        names.iter().fold(self, |columns, name| columns.add(name, new_null_array(&list, rows)))
    }

    fn no_int(self, names: &[&str]) -> Self {
        let rows = self.rows();
        names.iter().fold(self, |columns, name| columns.add(name, Arc::new(Int32Array::from(vec![None; rows]))))
    }

    fn rows(&self) -> usize {
        self.arrays.first().map_or(0, |array| array.len())
    }

    fn done(self) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.arrays)?)
    }
}

/// A table or view as clients see it; `t_latest` counts for itself.
struct Relation<'a> {
    oid: i32,
    name: String,
    listed: &'a Listed,
    is_view: bool,
    definition: Option<String>,
}

fn relations<'a>(listed: &'a [Listed], oids: &Oids) -> Vec<Relation<'a>> {
    let mut relations = Vec::new();
    for table in listed {
        let definition = table.definition.clone();
        let is_view = definition.is_some();
        relations.push(Relation {
            oid: oids.of(&table.name),
            name: table.name.clone(),
            listed: table,
            is_view,
            definition,
        });
        if table.has_latest {
            let name = format!("{}_latest", table.name);
            relations.push(Relation { oid: oids.of(&name), name, listed: table, is_view: true, definition: None });
        }
    }
    relations
}

impl Relation<'_> {
    fn columns(&self) -> impl Iterator<Item = (i16, &Field, PgType)> {
        let fields = self.listed.schema.as_ref().map(|schema| schema.fields().iter()).into_iter().flatten();
        (1..).zip(fields).map(|(number, field)| (number, field.as_ref(), pg_type(field)))
    }

    fn kind(&self) -> &'static str {
        if self.is_view { "v" } else { "r" }
    }
}

/// Makes one table of `pg_catalog` that depends on the lake, on who asks, or on the session.
pub(super) fn table(
    name: &str,
    listed: &[Listed],
    oids: &Oids,
    user: &str,
    session: &PgSession,
) -> Result<Option<RecordBatch>> {
    let relations = relations(listed, oids);
    let batch = match name {
        "pg_class" => class(&relations)?,
        "pg_attribute" => attribute(&relations)?,
        "pg_namespace" => Columns::default()
            .oids("oid", "oid", [NAMESPACE_CATALOG, NAMESPACE_PUBLIC, NAMESPACE_INFORMATION])
            .texts("nspname", [super::PG_CATALOG, PG_SCHEMA, INFORMATION_SCHEMA])
            .same_int(&["nspowner"], OWNER)
            .no_texts(&["nspacl"])
            .done()?,
        "pg_database" => database()?,
        "pg_tables" => {
            let tables: Vec<&Relation<'_>> = relations.iter().filter(|relation| !relation.is_view).collect();
            Columns::default()
                .texts("tablename", tables.iter().map(|table| table.name.as_str()))
                .same_text(&["schemaname"], PG_SCHEMA)
                .same_text(&["tableowner"], CATALOG)
                .no_text(&["tablespace"])
                .same_bool(&["hasindexes", "hasrules", "hastriggers", "rowsecurity"], false)
                .done()?
        }
        "pg_views" => {
            let views: Vec<&Relation<'_>> = relations.iter().filter(|relation| relation.is_view).collect();
            Columns::default()
                .texts("viewname", views.iter().map(|view| view.name.as_str()))
                .same_text(&["schemaname"], PG_SCHEMA)
                .same_text(&["viewowner"], CATALOG)
                .optional("definition", views.iter().map(|view| view.definition.clone()))
                .done()?
        }
        "pg_roles" | "pg_authid" => roles(user)?,
        "pg_user" => Columns::default()
            .texts("usename", role_names(user))
            .oids("usesysid", "oid", role_oids(user))
            .same_bool(&["usecreatedb", "usesuper", "userepl", "usebypassrls"], false)
            .no_text(&["passwd", "valuntil", "useconfig"])
            .done()?,
        "pg_settings" => settings(session)?,
        "pg_cursors" => Columns::default()
            .texts("name", session.cursors.iter())
            .no_text(&["statement", "creation_time"])
            .same_bool(&["is_holdable", "is_binary", "is_scrollable"], false)
            .done()?,
        "pg_indexes" => Columns::default()
            .texts("schemaname", Vec::<String>::new())
            .no_text(&["tablename", "indexname", "tablespace", "indexdef"])
            .done()?,
        "pg_sequences" => Columns::default()
            .texts("schemaname", Vec::<String>::new())
            .no_text(&["sequencename", "sequenceowner", "data_type"])
            .done()?,
        _ => return Ok(None),
    };
    Ok(Some(batch))
}

fn class(relations: &[Relation<'_>]) -> Result<RecordBatch> {
    let own = relations.len();
    let all = own + SYSTEM.len();
    let of_own = |n: usize| n < own;
    let columns: Vec<i16> =
        relations.iter().map(|relation| i16::try_from(relation.columns().count()).unwrap_or(i16::MAX)).collect();
    let relation_oids = || relations.iter().map(|r| r.oid).chain(SYSTEM.map(|(oid, _)| oid));
    Columns::default()
        .oids("oid", "oid", relation_oids())
        .texts("relname", relations.iter().map(|r| r.name.as_str()).chain(SYSTEM.map(|(_, name)| name)))
        .oids("relnamespace", "oid", (0..all).map(|n| if of_own(n) { NAMESPACE_PUBLIC } else { NAMESPACE_CATALOG }))
        .same_int(&["reltype", "reloftype"], 0)
        .oids("relowner", "oid", vec![OWNER; all])
        .oids("relam", "oid", relations.iter().map(|r| if r.is_view { 0 } else { 2 }).chain([2; SYSTEM.len()]))
        .ints("relfilenode", relation_oids())
        .same_int(&["reltablespace", "relpages"], 0)
        .add("reltuples", Arc::new(Float32Array::from(vec![-1.0; all])))
        .same_int(&["relallvisible", "reltoastrelid"], 0)
        .same_bool(&["relhasindex", "relisshared"], false)
        .same_text(&["relpersistence"], "p")
        .texts("relkind", relations.iter().map(Relation::kind).chain(["r"; SYSTEM.len()]))
        .shorts("relnatts", columns.into_iter().chain([0; SYSTEM.len()]))
        .shorts("relchecks", vec![0; all])
        .same_bool(&["relhasrules", "relhastriggers", "relhassubclass", "relrowsecurity", "relforcerowsecurity"], false)
        .same_bool(&["relispopulated"], true)
        .same_text(&["relreplident"], "d")
        .same_bool(&["relispartition"], false)
        .same_int(&["relrewrite", "relfrozenxid", "relminmxid"], 0)
        .no_texts(&["relacl", "reloptions"])
        .no_text(&["relpartbound"])
        .done()
}

fn attribute(relations: &[Relation<'_>]) -> Result<RecordBatch> {
    let rows: Vec<(i32, i16, &Field, PgType)> = relations
        .iter()
        .flat_map(|relation| relation.columns().map(|(number, field, pg)| (relation.oid, number, field, pg)))
        .collect();
    Columns::default()
        .oids("attrelid", "oid", rows.iter().map(|(oid, ..)| *oid))
        .texts("attname", rows.iter().map(|(_, _, field, _)| field.name().as_str()))
        .oids("atttypid", "oid", rows.iter().map(|(.., pg)| pg.oid.cast_signed()))
        .shorts("attlen", rows.iter().map(|(.., pg)| pg.size))
        .shorts("attnum", rows.iter().map(|(_, number, ..)| *number))
        .same_int(&["attcacheoff"], -1)
        .ints("atttypmod", rows.iter().map(|(.., pg)| pg.modifier))
        .ints("attndims", rows.iter().map(|(.., pg)| i32::from(pg.element != 0)))
        .bools("attbyval", rows.iter().map(|(.., pg)| (1..=8).contains(&pg.size)))
        .same_text(&["attalign"], "i")
        .texts("attstorage", rows.iter().map(|(.., pg)| if pg.size < 0 { "x" } else { "p" }))
        .same_text(&["attcompression"], "")
        .bools("attnotnull", rows.iter().map(|(_, _, field, _)| !field.is_nullable()))
        .same_bool(&["atthasdef", "atthasmissing"], false)
        .same_text(&["attidentity", "attgenerated"], "")
        .same_bool(&["attisdropped"], false)
        .same_bool(&["attislocal"], true)
        .same_int(&["attinhcount", "attcollation"], 0)
        .same_int(&["attstattarget"], -1)
        .no_texts(&["attacl", "attoptions", "attfdwoptions"])
        .no_text(&["attmissingval"])
        .done()
}

fn database() -> Result<RecordBatch> {
    Columns::default()
        .oids("oid", "oid", [DATABASE])
        .texts("datname", [CATALOG])
        .oids("datdba", "oid", [OWNER])
        .ints("encoding", [6])
        .texts("datlocprovider", ["c"])
        .same_bool(&["datistemplate"], false)
        .same_bool(&["datallowconn"], true)
        .same_int(&["datconnlimit"], -1)
        .same_int(&["datfrozenxid", "datminmxid"], 1)
        .same_int(&["dattablespace"], 1663)
        .same_text(&["datcollate", "datctype"], "C.UTF-8")
        .no_text(&["daticulocale", "daticurules", "datcollversion"])
        .no_texts(&["datacl"])
        .done()
}

/// The owner of all tables, and who asks.
fn role_names(user: &str) -> Vec<String> {
    if user == CATALOG { vec![user.to_owned()] } else { vec![CATALOG.to_owned(), user.to_owned()] }
}

fn role_oids(user: &str) -> Vec<i32> {
    if user == CATALOG { vec![OWNER] } else { vec![OWNER, OWNER + 1] }
}

fn roles(user: &str) -> Result<RecordBatch> {
    Columns::default()
        .oids("oid", "oid", role_oids(user))
        .texts("rolname", role_names(user))
        .same_bool(&["rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls"], false)
        .same_bool(&["rolinherit", "rolcanlogin"], true)
        .same_int(&["rolconnlimit"], -1)
        .same_text(&["rolpassword"], "********")
        .no_text(&["rolvaliduntil", "rolconfig"])
        .done()
}

fn settings(session: &PgSession) -> Result<RecordBatch> {
    let mut all: Vec<(&String, &String)> = session.settings.iter().collect();
    all.sort();
    Columns::default()
        .texts("name", all.iter().map(|(name, _)| name.as_str()))
        .texts("setting", all.iter().map(|(_, value)| value.as_str()))
        .texts("reset_val", all.iter().map(|(_, value)| value.as_str()))
        .same_text(&["category"], "Headworks")
        .same_text(&["context"], "user")
        .same_text(&["vartype"], "string")
        .same_text(&["source"], "session")
        .no_text(&["unit", "short_desc", "extra_desc", "min_val", "max_val", "enumvals", "boot_val", "sourcefile"])
        .no_int(&["sourceline"])
        .same_bool(&["pending_restart"], false)
        .done()
}

/// Makes one table of `information_schema` as PostgreSQL has it, with its names of schemas and types.
pub(crate) fn information(name: &str, listed: &[Listed]) -> Result<Option<RecordBatch>> {
    let oids = Oids::default();
    let relations = relations(listed, &oids);
    let batch = match name {
        "tables" => Columns::default()
            .texts("table_name", relations.iter().map(|r| r.name.as_str()))
            .same_text(&["table_catalog"], CATALOG)
            .same_text(&["table_schema"], PG_SCHEMA)
            .texts("table_type", relations.iter().map(|r| if r.is_view { "VIEW" } else { "BASE TABLE" }))
            .same_text(&["is_insertable_into", "is_typed"], "NO")
            .no_text(&["self_referencing_column_name", "reference_generation", "commit_action"])
            .done()?,
        "columns" => columns(&relations)?,
        "schemata" => Columns::default()
            .texts("schema_name", [super::PG_CATALOG, PG_SCHEMA, INFORMATION_SCHEMA])
            .same_text(&["catalog_name"], CATALOG)
            .same_text(&["schema_owner"], CATALOG)
            .no_text(&["default_character_set_name", "sql_path"])
            .done()?,
        "views" => {
            let views: Vec<&Relation<'_>> = relations.iter().filter(|r| r.is_view).collect();
            Columns::default()
                .texts("table_name", views.iter().map(|r| r.name.as_str()))
                .same_text(&["table_catalog"], CATALOG)
                .same_text(&["table_schema"], PG_SCHEMA)
                .optional("view_definition", views.iter().map(|r| r.definition.clone()))
                .same_text(&["check_option"], "NONE")
                .same_text(&["is_updatable", "is_insertable_into"], "NO")
                .done()?
        }
        _ => match EMPTY.iter().find(|(table, _)| *table == name) {
            None => return Ok(None),
            Some((_, columns)) => {
                Columns::default().texts(columns[0], Vec::<String>::new()).no_text(&columns[1..]).done()?
            }
        },
    };
    Ok(Some(batch))
}

/// Tables of `information_schema` that are empty here and that clients read all the same.
const EMPTY: [(&str, &[&str]); 6] = [
    (
        "table_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "constraint_type",
            "is_deferrable",
            "initially_deferred",
        ],
    ),
    (
        "key_column_usage",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position",
            "position_in_unique_constraint",
        ],
    ),
    (
        "referential_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "unique_constraint_catalog",
            "unique_constraint_schema",
            "unique_constraint_name",
            "match_option",
            "update_rule",
            "delete_rule",
        ],
    ),
    (
        "constraint_column_usage",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
        ],
    ),
    (
        "routines",
        &["specific_catalog", "specific_schema", "specific_name", "routine_schema", "routine_name", "routine_type"],
    ),
    ("sequences", &["sequence_catalog", "sequence_schema", "sequence_name", "data_type"]),
];

/// The names of all of them, for a hint.
pub(crate) fn information_names() -> impl Iterator<Item = &'static str> {
    ["tables", "columns", "schemata", "views"].into_iter().chain(EMPTY.iter().map(|(name, _)| *name))
}

fn columns(relations: &[Relation<'_>]) -> Result<RecordBatch> {
    let rows: Vec<(&str, i16, &Field, PgType)> = relations
        .iter()
        .flat_map(|relation| relation.columns().map(|(n, field, pg)| (relation.name.as_str(), n, field, pg)))
        .collect();
    let integers = |value: &dyn Fn(&PgType) -> Option<i32>| -> ArrayRef {
        Arc::new(rows.iter().map(|(.., pg)| value(pg)).collect::<Int32Array>())
    };
    let is_time = |pg: &PgType| matches!(pg.oid, 1083 | 1114 | 1184 | 1186);
    Columns::default()
        .texts("table_name", rows.iter().map(|(table, ..)| *table))
        .same_text(&["table_catalog"], CATALOG)
        .same_text(&["table_schema"], PG_SCHEMA)
        .texts("column_name", rows.iter().map(|(_, _, field, _)| field.name().as_str()))
        .ints("ordinal_position", rows.iter().map(|(_, number, ..)| i32::from(*number)))
        .no_text(&["column_default"])
        .texts("is_nullable", rows.iter().map(|(_, _, field, _)| if field.is_nullable() { "YES" } else { "NO" }))
        .texts("data_type", rows.iter().map(|(.., pg)| if pg.element != 0 { "ARRAY" } else { pg.name }))
        .no_int(&["character_maximum_length", "character_octet_length"])
        .add(
            "numeric_precision",
            integers(&|pg| match pg.oid {
                20 => Some(64),
                21 => Some(16),
                23 => Some(32),
                700 => Some(24),
                701 => Some(53),
                1700 => Some((pg.modifier - 4) >> 16),
                _ => None,
            }),
        )
        .add(
            "numeric_precision_radix",
            integers(&|pg| match pg.oid {
                20 | 21 | 23 | 700 | 701 => Some(2),
                1700 => Some(10),
                _ => None,
            }),
        )
        .add(
            "numeric_scale",
            integers(&|pg| match pg.oid {
                20 | 21 | 23 => Some(0),
                1700 => Some((pg.modifier - 4) & 0xffff),
                _ => None,
            }),
        )
        .add("datetime_precision", integers(&|pg| if pg.oid == 1082 { Some(0) } else { is_time(pg).then_some(6) }))
        .no_text(&["interval_type", "character_set_name", "collation_name", "domain_name"])
        .same_text(&["udt_catalog"], CATALOG)
        .same_text(&["udt_schema"], super::PG_CATALOG)
        .texts("udt_name", rows.iter().map(|(.., pg)| udt_name(pg)))
        .same_text(&["is_self_referencing", "is_identity", "is_updatable"], "NO")
        .no_text(&["identity_generation"])
        .same_text(&["is_generated"], "NEVER")
        .no_text(&["generation_expression"])
        .done()
}

/// The type's name in `pg_type`.
fn udt_name(pg: &PgType) -> String {
    let element = match if pg.element == 0 { pg.oid } else { pg.element } {
        16 => "bool",
        17 => "bytea",
        20 => "int8",
        21 => "int2",
        23 => "int4",
        114 => "json",
        700 => "float4",
        701 => "float8",
        1082 => "date",
        1083 => "time",
        1114 => "timestamp",
        1184 => "timestamptz",
        1186 => "interval",
        1700 => "numeric",
        2950 => "uuid",
        _ => "text",
    };
    if pg.element == 0 { element.to_owned() } else { format!("_{element}") }
}
