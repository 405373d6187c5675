//! The tables of a DuckLake 1.0 catalog, and ours beside them.
//!
//! Column names, types and keys are those that DuckDB 1.5.5's `ducklake` extension creates on each database, so that it takes
//! our catalog for its own. The indexes are ours; DuckDB does not mind them.

use chrono::{DateTime, Utc};
use headworks_store::{Component, Error as StoreError, Home, Migration, Store, values};
use uuid::Uuid;

use crate::{Error, Result};

/// The catalog's format, as `ducklake_metadata` names it.
pub(crate) const FORMAT: &str = "1.0";

macro_rules! catalog {
    (bool: $b:literal, uuid: $u:literal, time: $t:literal) => {
        concat!(
            "create table ducklake_metadata(key VARCHAR NOT NULL, value VARCHAR NOT NULL, scope VARCHAR, scope_id BIGINT);
create table ducklake_snapshot(snapshot_id BIGINT PRIMARY KEY, snapshot_time ", $t, ", schema_version BIGINT, next_catalog_id BIGINT, next_file_id BIGINT);
create table ducklake_snapshot_changes(snapshot_id BIGINT PRIMARY KEY, changes_made VARCHAR, author VARCHAR, commit_message VARCHAR, commit_extra_info VARCHAR);
create table ducklake_schema(schema_id BIGINT PRIMARY KEY, schema_uuid ", $u, ", begin_snapshot BIGINT, end_snapshot BIGINT, schema_name VARCHAR, path VARCHAR, path_is_relative ", $b, ");
create table ducklake_table(table_id BIGINT, table_uuid ", $u, ", begin_snapshot BIGINT, end_snapshot BIGINT, schema_id BIGINT, table_name VARCHAR, path VARCHAR, path_is_relative ", $b, ");
create table ducklake_view(view_id BIGINT, view_uuid ", $u, ", begin_snapshot BIGINT, end_snapshot BIGINT, schema_id BIGINT, view_name VARCHAR, dialect VARCHAR, sql VARCHAR, column_aliases VARCHAR);
create table ducklake_tag(object_id BIGINT, begin_snapshot BIGINT, end_snapshot BIGINT, key VARCHAR, value VARCHAR);
create table ducklake_column_tag(table_id BIGINT, column_id BIGINT, begin_snapshot BIGINT, end_snapshot BIGINT, key VARCHAR, value VARCHAR);
create table ducklake_data_file(data_file_id BIGINT PRIMARY KEY, table_id BIGINT, begin_snapshot BIGINT, end_snapshot BIGINT, file_order BIGINT, path VARCHAR, path_is_relative ", $b, ", file_format VARCHAR, record_count BIGINT, file_size_bytes BIGINT, footer_size BIGINT, row_id_start BIGINT, partition_id BIGINT, encryption_key VARCHAR, mapping_id BIGINT, partial_max BIGINT);
create table ducklake_file_column_stats(data_file_id BIGINT, table_id BIGINT, column_id BIGINT, column_size_bytes BIGINT, value_count BIGINT, null_count BIGINT, min_value VARCHAR, max_value VARCHAR, contains_nan ", $b, ", extra_stats VARCHAR);
create table ducklake_file_variant_stats(data_file_id BIGINT, table_id BIGINT, column_id BIGINT, variant_path VARCHAR, shredded_type VARCHAR, column_size_bytes BIGINT, value_count BIGINT, null_count BIGINT, min_value VARCHAR, max_value VARCHAR, contains_nan ", $b, ", extra_stats VARCHAR);
create table ducklake_delete_file(delete_file_id BIGINT PRIMARY KEY, table_id BIGINT, begin_snapshot BIGINT, end_snapshot BIGINT, data_file_id BIGINT, path VARCHAR, path_is_relative ", $b, ", format VARCHAR, delete_count BIGINT, file_size_bytes BIGINT, footer_size BIGINT, encryption_key VARCHAR, partial_max BIGINT);
create table ducklake_column(column_id BIGINT, begin_snapshot BIGINT, end_snapshot BIGINT, table_id BIGINT, column_order BIGINT, column_name VARCHAR, column_type VARCHAR, initial_default VARCHAR, default_value VARCHAR, nulls_allowed ", $b, ", parent_column BIGINT, default_value_type VARCHAR, default_value_dialect VARCHAR);
create table ducklake_table_stats(table_id BIGINT, record_count BIGINT, next_row_id BIGINT, file_size_bytes BIGINT);
create table ducklake_table_column_stats(table_id BIGINT, column_id BIGINT, contains_null ", $b, ", contains_nan ", $b, ", min_value VARCHAR, max_value VARCHAR, extra_stats VARCHAR);
create table ducklake_partition_info(partition_id BIGINT, table_id BIGINT, begin_snapshot BIGINT, end_snapshot BIGINT);
create table ducklake_partition_column(partition_id BIGINT, table_id BIGINT, partition_key_index BIGINT, column_id BIGINT, transform VARCHAR);
create table ducklake_file_partition_value(data_file_id BIGINT, table_id BIGINT, partition_key_index BIGINT, partition_value VARCHAR);
create table ducklake_files_scheduled_for_deletion(data_file_id BIGINT, path VARCHAR, path_is_relative ", $b, ", schedule_start ", $t, ");
create table ducklake_inlined_data_tables(table_id BIGINT, table_name VARCHAR, schema_version BIGINT);
create table ducklake_column_mapping(mapping_id BIGINT, table_id BIGINT, type VARCHAR);
create table ducklake_name_mapping(mapping_id BIGINT, column_id BIGINT, source_name VARCHAR, target_field_id BIGINT, parent_column BIGINT, is_partition ", $b, ");
create table ducklake_schema_versions(begin_snapshot BIGINT, schema_version BIGINT, table_id BIGINT);
create table ducklake_macro(schema_id BIGINT, macro_id BIGINT, macro_name VARCHAR, begin_snapshot BIGINT, end_snapshot BIGINT);
create table ducklake_macro_impl(macro_id BIGINT, impl_id BIGINT, dialect VARCHAR, sql VARCHAR, type VARCHAR);
create table ducklake_macro_parameters(macro_id BIGINT, impl_id BIGINT, column_id BIGINT, parameter_name VARCHAR, parameter_type VARCHAR, default_value VARCHAR, default_value_type VARCHAR);
create table ducklake_sort_info(sort_id BIGINT, table_id BIGINT, begin_snapshot BIGINT, end_snapshot BIGINT);
create table ducklake_sort_expression(sort_id BIGINT, table_id BIGINT, sort_key_index BIGINT, expression VARCHAR, dialect VARCHAR, sort_direction VARCHAR, null_order VARCHAR);
create index hw_data_file_table on ducklake_data_file(table_id, end_snapshot, partition_id);
create index hw_delete_file_data on ducklake_delete_file(data_file_id);
create index hw_delete_file_table on ducklake_delete_file(table_id);
create index hw_partition_value on ducklake_file_partition_value(table_id, partition_key_index, partition_value);
create index hw_partition_value_file on ducklake_file_partition_value(data_file_id);
create index hw_file_stats on ducklake_file_column_stats(data_file_id, column_id);
create index hw_column_table on ducklake_column(table_id);
create index hw_table_name on ducklake_table(table_name);
create index hw_tag_object on ducklake_tag(object_id);
create index hw_column_tag_table on ducklake_column_tag(table_id);
create index hw_table_stats_table on ducklake_table_stats(table_id);
create index hw_table_column_stats_table on ducklake_table_column_stats(table_id, column_id);
create index hw_partition_info_table on ducklake_partition_info(table_id);
create index hw_partition_column_id on ducklake_partition_column(partition_id);
create index hw_schema_versions_table on ducklake_schema_versions(table_id)"
        )
    };
}

/// The tables of this crate, for making them anew from a backup.
pub const TABLES: [Component; 2] = [
    Component { name: "lake_catalog", home: Home::Lake, migrations: CATALOG },
    Component { name: "lake_registry", home: Home::Platform, migrations: REGISTRY },
];

const CATALOG: &[Migration] = &[Migration {
    version: 1,
    sql: catalog!(bool: "BIGINT", uuid: "VARCHAR", time: "VARCHAR"),
    postgres: Some(catalog!(bool: "BOOLEAN", uuid: "UUID", time: "TIMESTAMPTZ")),
}];

/// `hw_lake` has one row a fact about the lake; `hw_table` what we know of a table besides its catalog rows; `hw_partition` the
/// newest version of every partition; `hw_publish` every version there ever was.
pub(crate) const REGISTRY: &[Migration] = &[Migration {
    version: 1,
    sql: "create table hw_lake(key TEXT PRIMARY KEY, value TEXT NOT NULL);
create table hw_table(table_id BIGINT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, job TEXT, owner TEXT, retention_secs BIGINT, columns TEXT);
create table hw_partition(table_id BIGINT NOT NULL, partition TEXT NOT NULL, version BIGINT NOT NULL, row_count BIGINT, bytes BIGINT, files BIGINT, published_at BIGINT NOT NULL, PRIMARY KEY (table_id, partition));
create table hw_publish(version BIGINT NOT NULL, table_id BIGINT NOT NULL, partition TEXT NOT NULL, action TEXT NOT NULL, row_count BIGINT, bytes BIGINT, files BIGINT, published_at BIGINT NOT NULL, job TEXT, run_id TEXT, attempt BIGINT, job_version TEXT, as_of_now BOOLEAN NOT NULL, inputs TEXT, PRIMARY KEY (table_id, partition, version));
create index hw_publish_version on hw_publish(version)",
    postgres: None,
}];

/// Checks the catalog and answers the lake's id; `None` when it has yet to be made.
///
/// `data_path` is where the data files are, ending in `/`. Errors: `Newer` for another catalog format, `Elsewhere` when the
/// catalog belongs to files at another place, `Unsupported` for encrypted files.
pub(crate) async fn find(store: &Store, data_path: &str) -> Result<Option<String>> {
    for component in TABLES {
        store.migrate(component.name, component.home, component.migrations).await?;
    }
    check(store, data_path).await
}

/// Makes the catalog and answers the lake's id.
pub(crate) async fn create(store: &Store, data_path: &str, now: DateTime<Utc>) -> Result<String> {
    let path = data_path.to_owned();
    store
        .write(move |tx| {
            Box::pin(async move {
                // Another process may have been quicker between the look and the lock.
                tx.execute("insert into hw_lake values ('id', $1) on conflict do nothing", &values![Uuid::now_v7().to_string()]).await?;
                if tx.row("select 1 from ducklake_metadata where key = 'version'", &[]).await?.is_some() {
                    return Ok(());
                }
                let by = concat!("Headworks ", env!("CARGO_PKG_VERSION"));
                for (key, value) in [("version", FORMAT), ("created_by", by), ("data_path", &path), ("encrypted", "false")] {
                    tx.execute("insert into ducklake_metadata(key, value) values ($1, $2)", &values![key, value]).await?;
                }
                tx.execute("insert into ducklake_snapshot values (0, $1, 0, 1, 0)", &values![now]).await?;
                tx.execute("insert into ducklake_snapshot_changes(snapshot_id, changes_made) values (0, 'created_schema:\"main\"')", &[])
                    .await?;
                tx.execute("insert into ducklake_schema values (0, $1, 0, null, 'main', 'main/', $2)", &values![Uuid::now_v7(), true])
                    .await?;
                tx.execute("insert into ducklake_schema_versions(begin_snapshot, schema_version) values (0, 0)", &[]).await?;
                tx.execute("insert into hw_lake values ('seen', '0') on conflict do nothing", &[]).await?;
                Ok::<_, StoreError>(())
            })
        })
        .await?;
    check(store, data_path).await?.ok_or_else(|| Error::Corrupt { what: "the catalog has no version".to_owned() })
}

/// Looks at a catalog that this process only reads and answers the lake's id; `None` when there is no lake yet.
///
/// Errors: as with [`find`].
pub(crate) async fn look(store: &Store, data_path: &str) -> Result<Option<String>> {
    // Migrations only expand, so what an older program made can be read as it is.
    for component in TABLES {
        if store.migrated(component.name, component.migrations).await? == 0 {
            return Ok(None);
        }
    }
    check(store, data_path).await
}

/// The lake's id if the catalog is there and fits; `None` when it is empty.
async fn check(store: &Store, data_path: &str) -> Result<Option<String>> {
    let mut id = None;
    let mut format = None;
    for row in store
        .rows(
            "select key, value from ducklake_metadata where scope is null and key in ('version', 'data_path', 'encrypted')
             union all select 'id', value from hw_lake where key = 'id'",
            &[],
        )
        .await?
    {
        let value = row.text(1)?;
        match row.text(0)?.as_str() {
            "version" if value == FORMAT => format = Some(value),
            "version" => return Err(Error::Newer { found: value }),
            "data_path" if value == data_path => {}
            "data_path" => move_to(store, &value, data_path).await?,
            "encrypted" if value == "true" => {
                return Err(Error::Unsupported { what: "the lake's files are encrypted".to_owned() });
            }
            "id" => id = Some(value),
            _ => {}
        }
    }
    Ok(format.and(id))
}

/// A project's folder may be moved: its local lake moves with it. Anything else is a mix-up.
async fn move_to(store: &Store, from: &str, to: &str) -> Result<()> {
    let is_local = |path: &str| !path.contains("://");
    let moved =
        is_local(from) && is_local(to) && !std::path::Path::new(from).exists() && std::path::Path::new(to).exists();
    // Version 0 is the empty lake: nothing was ever published, so nothing can be left behind.
    let empty = store.row("select 1 from ducklake_snapshot where snapshot_id > 0 limit 1", &[]).await?.is_none();
    if !moved && !empty {
        return Err(Error::Elsewhere { catalog: from.to_owned(), configured: to.to_owned() });
    }
    if store.is_read_only() {
        return Ok(());
    }
    let to = to.to_owned();
    store
        .write(move |tx| {
            Box::pin(async move {
                tx.execute("update ducklake_metadata set value = $1 where key = 'data_path'", &values![to])
                    .await
                    .map(drop)
            })
        })
        .await
        .map_err(|error: StoreError| error.into())
}
