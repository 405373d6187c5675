//! A project that has grown: production and the metadata database in PostgreSQL, the lake's files on S3.

use std::{fs, process::Stdio, time::Duration};

use headworks_testkit::{Attach, DuckDb, Moto, TempPostgres};
use serde_json::json;

use crate::project::Project;

/// Ten days of orders, one every seven minutes.
const PRODUCTION: &str = "
    create table orders (id int primary key, sku text not null, price numeric(10, 2), bought_at timestamptz not null);
    insert into orders
    select n, 'sku ' || n % 7, (n * 37 % 1000) / 10.0, timestamptz '2026-01-01 00:00Z' + n * interval '7 minutes'
    from generate_series(0, 2050) n";

const ORDERS: &str = "owner: tests
schedule: \"@daily\"
start: 2026-01-01
kind: events
import: {connection: production, table: orders, by: bought_at}
columns:
  id: {type: integer, checks: [not_null, unique]}
";

const REVENUE: &str = "/* job
owner: tests
schedule: \"@daily\"
start: 2026-01-01
kind: events
*/
SELECT sku, count(*) AS orders, sum(price) AS total FROM wait::orders WHERE ds = DATE '{{ ds }}' GROUP BY sku
";

const RUNNING: &str = "/* job
owner: tests
schedule: \"@daily\"
start: 2026-01-01
kind: cumulative
wait: [self@-1]
columns:
  total: {type: \"decimal(20, 2)\"}
checks:
  - {name: grows, sql: \"select min(total) > 0 from this\"}
*/
SELECT CAST(sum(total) AS DECIMAL(20, 2)) AS total FROM (
  SELECT total FROM wait::revenue WHERE ds = DATE '{{ ds }}'
  UNION ALL SELECT total FROM running WHERE ds = DATE '{{ prev_ds }}'
)
";

const RANGE: [&str; 6] = ["backfill", "--all", "--from", "2026-01-01", "--to", "2026-01-08"];
const RUNS: usize = 3 * 8;

struct Grown {
    project: Project,
    moto: Moto,
    metadata: String,
    production: String,
}

fn name_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

impl Grown {
    fn new() -> Self {
        let postgres = TempPostgres::shared().unwrap();
        let (metadata, production) = (postgres.create_database().unwrap(), postgres.create_database().unwrap());
        postgres.psql(name_of(&production), PRODUCTION).unwrap();
        let moto = Moto::start().unwrap();
        moto.create_bucket("lake").unwrap();
        let settings = format!(
            "[metadata]\nurl = \"{metadata}\"\n\n[storage]\npath = \"s3://lake/some prefix\"\nendpoint = \"{}\"\nregion = \"{}\"\n\
             access_key_id = \"{}\"\nsecret_access_key = \"{}\"\nallow_http = true\n\n\
             [connections.production]\ntype = \"postgres\"\nurl = \"{production}\"\n",
            moto.endpoint(),
            Moto::REGION,
            Moto::ACCESS_KEY_ID,
            Moto::SECRET_ACCESS_KEY,
        );
        let project = Project::nothing()
            .file("headworks.toml", &settings)
            .file("jobs/orders.yml", ORDERS)
            .file("jobs/revenue.sql", REVENUE)
            .file("jobs/running.sql", RUNNING);
        Self { project, moto, metadata, production }
    }

    fn source(&self, sql: &str) -> String {
        TempPostgres::shared().unwrap().psql(name_of(&self.production), sql).unwrap()
    }

    /// The one value of a query of the lake.
    fn value(&self, sql: &str) -> String {
        let rows = self.project.ok(&["sql", sql]);
        rows.lines().nth(1).unwrap_or_default().to_owned()
    }

    fn data_files(&self) -> Vec<String> {
        self.moto.keys("lake", "some prefix/data/").unwrap()
    }

    /// What the lake must hold once all is published, by the source's own numbers.
    fn check(&self) {
        let first_days = "where bought_at < '2026-01-09 00:00Z'";
        let count = self.source(&format!("select count(*) from orders {first_days}"));
        let total = self.source(&format!("select sum(price) from orders {first_days}"));
        assert_eq!(self.value("SELECT count(*) FROM orders"), count);
        assert_eq!(self.value("SELECT count(DISTINCT id) FROM orders"), count);
        assert_eq!(self.value("SELECT sum(total) FROM revenue"), total);
        assert_eq!(self.value("SELECT total FROM running_latest"), total);
        assert_eq!(self.value("SELECT count(DISTINCT ds) FROM running"), "8");
        // DuckDB has no way to S3 here: it reads a copy of the bucket, by the same catalog.
        let copy = self.project.path().join("copy");
        for key in self.data_files() {
            let file = copy.join(key.strip_prefix("some prefix/data/").unwrap());
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, self.moto.get("lake", &key).unwrap()).unwrap();
        }
        let mut duck = DuckDb::start().unwrap();
        let lake = Attach::postgres(&self.metadata).metadata_schema("headworks_lake").data_path(copy);
        duck.attach(&lake.option("override_data_path true").option("read_only")).unwrap();
        let query =
            "select (select count(*)::varchar from lake.orders), (select sum(total)::varchar from lake.revenue)";
        assert_eq!(duck.query(query).unwrap(), [[json!(count), json!(total)]]);
    }
}

#[test]
fn on_postgres_and_s3_everything_works() {
    let grown = Grown::new();
    let project = &grown.project;
    project.ok(&["run", "orders", "--ds", "2026-01-01"]);
    let done = project.json(&RANGE);
    assert_eq!((&done["success"], &done["failed"]), (&json!(RUNS - 1), &json!(0)), "{done}");
    grown.check();
    assert_eq!(grown.data_files().len(), RUNS);

    let shown = project.ok(&["tables", "show", "orders"]);
    assert!(shown.contains("bought_at") && shown.contains("2026-01-08"), "{shown}");
    let tables = project.json(&["tables", "list"]);
    assert_eq!(tables["tables"].as_array().unwrap().len(), 3, "{tables}");

    // A replaced partition leaves its old file, for who reads the older version, until that is beyond the horizon.
    project.ok(&["run", "revenue", "--ds", "2026-01-03", "--reprocess"]);
    assert_eq!(grown.data_files().len(), RUNS + 1);
    let history = project.json(&["tables", "history", "revenue", "--ds", "2026-01-03"]);
    let old = history["versions"][1]["version"].to_string();
    let then = format!("SELECT count(*) FROM revenue AT (VERSION => {old}) WHERE ds = DATE '2026-01-03'");
    assert_eq!(grown.value(&then), "7");
    grown.moto.put("lake", "some prefix/data/main/orders/ds=2026-01-02/of-a-crash.parquet", b"PAR1").unwrap();
    let dry = project.json(&["gc", "--dry-run", "--set", "retention.orphans=0s"]);
    assert_eq!(dry["removals"].as_array().unwrap().len(), 1, "{dry}");
    assert!(dry["removals"][0]["name"].as_str().unwrap().contains("of-a-crash"), "{dry}");
    assert_eq!(grown.data_files().len(), RUNS + 2, "a dry run removes nothing");
    project.ok(&["gc", "--set", "retention.orphans=0s"]);
    assert_eq!(grown.data_files().len(), RUNS + 1);
    grown.check();
    let doctor = project.run(&["doctor"]);
    assert_eq!(doctor.code, 0, "{doctor:?}");
}

#[test]
fn on_postgres_and_s3_kills_lose_and_double_nothing() {
    let grown = Grown::new();
    // Killed when so many files are there, which is in the middle of what comes next.
    for files in [1, 6, 11] {
        let mut child = grown.project.command(&RANGE).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while grown.data_files().len() < files {
            assert!(child.try_wait().unwrap().is_none(), "it ended with {} files", grown.data_files().len());
            std::thread::park_timeout(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let done = grown.project.json(&RANGE);
    assert_eq!(done["failed"], 0, "{done}");
    assert!(done["success"].as_u64().unwrap() > 0, "{done}");
    grown.check();
    grown.project.ok(&["gc", "--set", "retention.orphans=0s"]);
    assert_eq!(grown.data_files().len(), RUNS);
    grown.check();
}
