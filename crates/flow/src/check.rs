//! What types cannot say: checks of each job's meaning, and of all jobs together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use headworks_domain::{Grain, JobName, Problem, RunId, Severity, nearest};

use crate::{
    column::ColumnType,
    job::{Job, JobBody},
    jobfile::JobFile,
    outside,
    plan::RunContext,
    project::Project,
    render::sample_interval,
    schedule::Schedule,
    schema::listed,
    source::At,
    spec::{Catchup, ColumnCheck, Kind, PartitionColumn, Reach, SqlCheck, TableCheck, WaitRef},
    sql,
    target::JobAlerts,
    task, waits,
};

/// A job with the places of the tables in its SQL.
struct Candidate {
    job: Job,
    waits: Vec<(At, WaitRef)>,
    latest: Vec<(At, String)>,
    plain: Vec<(At, String)>,
    problems: Vec<Problem>,
    /// It waits for itself through others.
    circular: bool,
}

/// Puts the jobs into the project, without those that have errors, and tells every problem.
pub(crate) fn assemble(project: &mut Project, files: Vec<JobFile>, problems: &mut Vec<Problem>) {
    // Names of broken files count as there: those who refer to them are not to blame.
    let mut broken: BTreeSet<String> = BTreeSet::new();
    let mut candidates = Vec::new();
    for file in files {
        let had_errors = !file.problems.is_empty();
        problems.extend(file.problems);
        match file.job {
            Some(job) if !had_errors => candidates.push(examine(project, job)),
            _ => broken.extend(file.table.iter().map(|t| t.as_str().to_lowercase())),
        }
    }
    refuse_doubles(&mut candidates);
    let shown = Tables::new(&candidates, broken);
    for candidate in &mut candidates {
        let found = references(candidate, &shown, project);
        candidate.problems.extend(found);
    }
    refuse_circles(&mut candidates);
    for candidate in candidates {
        let fit = !candidate.circular && candidate.problems.iter().all(|p| p.severity != Severity::Error);
        problems.extend(candidate.problems);
        if fit {
            project.add(Arc::new(candidate.job));
        }
    }
}

/// Checks a job by itself, and renders its SQL once to find its tables.
fn examine(project: &Project, mut job: Job) -> Candidate {
    let mut problems = header_problems(&job);
    let (mut waits, mut latest, mut plain) = (header_waits(&job, &mut problems), Vec::new(), Vec::new());
    let interval = sample_interval(&job);
    let context = RunContext {
        run_id: "sample".parse::<RunId>().expect("a plain word is an id"),
        env: "sample".to_owned(),
        params: serde_json::Map::new(),
    };
    match &job.body {
        JobBody::Sql(body) => {
            let (_, analysis, found) = job.render_body(&project.config.vars, body, interval, &context);
            problems.extend(found);
            waits.extend(analysis.waits);
            latest = analysis.latest;
            plain = analysis.plain;
        }
        JobBody::Import(_) => {}
        JobBody::Tasks => {
            let macros = job.macros(&project.config.vars, interval, &context);
            problems.extend(task::task_problems(&job, project, &macros));
        }
    }
    if job.outside_waits().next().is_some() {
        let macros = job.macros(&project.config.vars, interval, &context);
        problems.extend(outside::problems(&job, project, &macros));
    }
    if let Some(pool) = &job.spec.pool
        && let Some((message, hint)) = pool_problem(&project.config.pools, pool)
    {
        problems.push(job.source.error(job.at(&["pool"]), message, hint));
    }
    for (n, check) in job.filled_checks(&project.config.vars, interval, &context).into_iter().enumerate() {
        match check {
            Err(problem) => problems.push(problem),
            Ok(TableCheck::Sql(check)) => problems.extend(check_problems(&job, n, &check)),
            Ok(TableCheck::RowCount(_)) => {}
        }
    }
    let others = waits.iter().filter(|(_, wait)| !wait.is_self()).count() + job.outside_waits().count();
    if job.schedule.as_ref().is_some_and(Schedule::is_after_waits) && others == 0 && problems.is_empty() {
        let hint = "read a table as `wait::t`, or name one in `wait:`, or a file";
        problems.push(job.source.error(job.at(&["schedule"]), "`after waits` has nothing to wait for", hint));
    }
    for (_, wait) in &waits {
        if !job.waits.contains(wait) {
            job.waits.push(wait.clone());
        }
    }
    job.reads_latest = distinct(&latest);
    job.reads_plain = distinct(&plain);
    Candidate { job, waits, latest, plain, problems, circular: false }
}

/// What is wrong with the name of a pool, and what to write.
pub(crate) fn pool_problem(pools: &BTreeMap<String, u32>, name: &str) -> Option<(String, String)> {
    if pools.contains_key(name) {
        return None;
    }
    let names = || pools.keys().map(String::as_str);
    let hint = match nearest(name, names()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if pools.is_empty() => format!("give it slots in headworks.toml, as `{name} = 4` below [pools]"),
        None => format!("headworks.toml has the pools {}", listed(names())),
    };
    Some((format!("there is no pool `{name}`"), hint))
}

fn distinct(found: &[(At, String)]) -> Vec<String> {
    found.iter().map(|(_, name)| name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The waits of the header with their places.
fn header_waits(job: &Job, problems: &mut Vec<Problem>) -> Vec<(At, WaitRef)> {
    let mut found = Vec::new();
    for (n, wait) in job.spec.wait.iter().enumerate() {
        let at = job.at(&["wait", &n.to_string()]);
        match wait.wait_ref() {
            Ok(wait) => found.extend(wait.map(|wait| (at, wait))),
            Err(message) => problems.push(job.source.error(at, message, "keep one of them")),
        }
    }
    found
}

/// Checks that concern the header alone.
fn header_problems(job: &Job) -> Vec<Problem> {
    let spec = &job.spec;
    let mut problems = Vec::new();
    if let Some(table) = &job.table
        && let Some(reason) = reserved_table(table.as_str())
    {
        let at = match (&spec.table, &spec.name) {
            (Some(_), _) => job.at(&["table"]),
            (None, Some(_)) => job.at(&["name"]),
            (None, None) => (0, 0),
        };
        let message = format!("`{table}` cannot be a table: {reason}");
        problems.push(job.source.error(at, message, "give the header another `table:`"));
    }
    let mut fail = |path: &[&str], message: String, hint: &str| {
        problems.push(job.source.error(job.at(path), message, hint));
    };
    if let (Some(start), Some(end)) = (spec.start, spec.end)
        && end < start
    {
        fail(&["end"], format!("`end` is before `start`: {end} is before {start}"), "both days are filled: swap them");
    }
    match (spec.kind, spec.key.is_empty()) {
        (Kind::Upsert, true) => {
            fail(
                &["kind"],
                "`kind: upsert` lacks its key".to_owned(),
                "name the columns of a row's key, as `key: [id]`",
            );
        }
        (kind, false) if kind != Kind::Upsert => {
            fail(&["key"], "`key` is for `kind: upsert` only".to_owned(), "remove it, or write `kind: upsert`");
        }
        _ => {}
    }
    if spec.kind == Kind::View {
        let kept = "a view is computed when it is read: nothing of it is stored";
        for (key, given) in [
            ("checks", !spec.checks.is_empty()),
            ("partition_by", !spec.partition_by.is_empty()),
            ("schedule", spec.schedule.is_some()),
            ("retention", spec.retention.is_some()),
            ("import", spec.import.is_some()),
        ] {
            if given {
                fail(&[key], format!("a view cannot have `{key}`"), &format!("{kept}; remove it"));
            }
        }
        for (name, _) in spec.columns.iter().filter(|(_, column)| !column.checks.is_empty()) {
            let message = format!("a view cannot check its column `{name}`");
            fail(&["columns", name, "checks"], message, &format!("{kept}; check the tables that it reads"));
        }
    }
    partition_problems(job, &mut fail);
    column_problems(job, &mut fail);
    if spec.catchup == Catchup::All && spec.start.is_none() {
        fail(
            &["catchup"],
            "`catchup: all` lacks a first day".to_owned(),
            "give the header a `start:`, as `start: 2024-01-01`",
        );
    }
    if spec.deadline.is_some() && job.schedule.is_none() {
        let hint = "give the header a `schedule:`, or remove the deadline";
        problems.push(job.source.warning(job.at(&["deadline"]), "a job that runs by hand is never late", hint));
    }
    problems
}

fn partition_problems(job: &Job, fail: &mut impl FnMut(&[&str], String, &str)) {
    let by = &job.spec.partition_by;
    let named = |column| by.contains(&column);
    if by.is_empty() {
        return;
    }
    if by[0] != PartitionColumn::Ds {
        fail(
            &["partition_by"],
            "the first partition column is always `ds`".to_owned(),
            "write `[ds]`, `[ds, hour]` or `[ds, event_type]`",
        );
    }
    let distinct: BTreeSet<&str> = by.iter().map(|c| c.as_str()).collect();
    if distinct.len() < by.len() {
        fail(&["partition_by"], "a partition column is named twice".to_owned(), "name each once");
    }
    match (job.grain == Grain::Hour, named(PartitionColumn::Hour)) {
        (true, false) => fail(
            &["partition_by"],
            "an hourly table is partitioned by `ds` and `hour`".to_owned(),
            "add `hour`, or write `grain: day` for one partition a day",
        ),
        (false, true) => fail(
            &["partition_by"],
            format!("a table with one partition a {} has no `hour`", job.grain),
            "write `grain: hour`, or remove `hour`",
        ),
        _ => {}
    }
}

fn column_problems(job: &Job, fail: &mut impl FnMut(&[&str], String, &str)) {
    let spec = &job.spec;
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (name, column) in spec.columns.iter() {
        if name.trim().is_empty() || name.len() > 255 || name.contains(['\0', '\n']) {
            fail(&["columns", name], format!("`{name}` cannot be a column's name"), "use 1 to 255 bytes on one line");
        }
        if let Some(other) = seen.insert(name.to_lowercase(), name) {
            let hint = "readers of the lake do not tell small and capital letters apart: rename one";
            fail(&["columns", name], format!("the columns `{other}` and `{name}` have one name"), hint);
        }
        let fixed = match name {
            "ds" => Some(ColumnType::Date),
            "hour" if job.grain == Grain::Hour => Some(ColumnType::Integer),
            _ => None,
        };
        if let (Some(fixed), Some(given)) = (fixed, &column.column_type)
            && fixed != *given
        {
            let hint =
                format!("it names the partition and is always `{fixed}`: write that, or give your column another name");
            fail(&["columns", name, "type"], format!("the column `{name}` cannot be `{given}`"), &hint);
        }
        for (n, check) in column.checks.iter().enumerate() {
            let path = ["columns", name, "checks", &n.to_string()].map(str::to_owned);
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match check {
                ColumnCheck::AcceptedValues(values) if values.is_empty() => {
                    fail(&path, "`accepted_values` accepts nothing".to_owned(), "list the values, as `[a, b]`");
                }
                ColumnCheck::AcceptedValues(values) if values.iter().any(|v| v.is_object() || v.is_array()) => {
                    fail(
                        &path,
                        "`accepted_values` are texts, numbers, `true` or `false`".to_owned(),
                        "take lists and maps out",
                    );
                }
                _ => {}
            }
        }
    }
    let declared = || spec.columns.iter().map(|(name, _)| name);
    if !spec.columns.is_empty() {
        for (n, key) in spec.key.iter().enumerate() {
            if !declared().any(|name| name == key) && !job.partition_columns().contains(&key.as_str()) {
                let hint = nearest(key, declared()).map_or_else(
                    || format!("the columns are {}", listed(declared())),
                    |near| format!("did you mean `{near}`?"),
                );
                fail(&["key", &n.to_string()], format!("the key `{key}` is not one of the columns"), &hint);
            }
        }
        if spec.partition_by.contains(&PartitionColumn::EventType) && !declared().any(|name| name == "event_type") {
            fail(
                &["partition_by"],
                "the columns lack `event_type`".to_owned(),
                "declare it, as `event_type: {type: varchar}`",
            );
        }
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (n, check) in spec.checks.iter().enumerate() {
        if !names.insert(check.name()) {
            fail(&["checks", &n.to_string(), "name"], format!("two checks are named `{}`", check.name()), "rename one");
        }
        if let TableCheck::RowCount(check) = check {
            let path = ["checks", &n.to_string(), "row_count"].map(str::to_owned);
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match (check.row_count.min, check.row_count.max) {
                (None, None) => fail(&path, "`row_count` has no bound".to_owned(), "give it `min`, `max` or both"),
                (Some(min), Some(max)) if min > max => {
                    fail(&path, format!("`row_count` lets nothing pass: {min} is more than {max}"), "swap them");
                }
                _ => {}
            }
        }
    }
    if let Some(import) = &spec.import {
        for (name, _) in import.types.iter() {
            let taken = import.columns.is_empty() || import.columns.iter().any(|column| column == name);
            if !taken {
                let columns = || import.columns.iter().map(String::as_str);
                let hint = nearest(name, columns())
                    .map_or("add it to `columns`".to_owned(), |near| format!("did you mean `{near}`?"));
                fail(&["import", "types", name], format!("`{name}` has a type but is not taken"), &hint);
            }
        }
    }
}

/// Why a name cannot be a table's.
fn reserved_table(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    match lower.as_str() {
        "self" | "this" => return Some("in waits and checks it means the job's own table"),
        "main" | "information_schema" => return Some("it is the name of a schema"),
        _ => {}
    }
    let reserved = ["ducklake_", "hw_", "sqlite_", "pg_"].iter().any(|prefix| lower.starts_with(prefix));
    reserved.then_some("names that begin so belong to the databases")
}

/// Parses the SQL of the header's check number `n`.
fn check_problems(job: &Job, n: usize, check: &SqlCheck) -> Vec<Problem> {
    let at = job.at(&["checks", &n.to_string(), "sql"]);
    let analysis = sql::analyse(&check.sql, job.table_name());
    let mut problems: Vec<Problem> = analysis
        .problems
        .into_iter()
        .map(|p| job.source.error(at, format!("check `{}`: {}", check.name, p.message), p.hint))
        .collect();
    if !analysis.waits.is_empty() || !analysis.latest.is_empty() {
        let message = format!("check `{}` reads a table with a prefix", check.name);
        problems.push(job.source.error(at, message, "a check reads `this`, the result, and tables that are there"));
    }
    problems
}

/// No two jobs have one name, and none write one table.
fn refuse_doubles(candidates: &mut [Candidate]) {
    let mut names: BTreeMap<JobName, String> = BTreeMap::new();
    let mut tables: BTreeMap<String, (String, String)> = BTreeMap::new();
    for candidate in candidates {
        let job = &candidate.job;
        let other = names.get(&job.name).cloned();
        if let Some(other) = &other {
            let at = if job.spec.name.is_some() { job.at(&["name"]) } else { (0, 0) };
            let message = format!("a job `{}` is there already, in `{other}`", job.name);
            candidate.problems.push(job.source.error(at, message, "rename one of them"));
        }
        names.entry(job.name.clone()).or_insert_with(|| job.file.clone());
        let Some(made) = &job.table else { continue };
        let key = made.as_str().to_lowercase();
        match tables.get(&key) {
            // One problem is enough where the whole job is there twice.
            Some(_) if other.is_some() => {}
            Some((file, table)) => {
                let at = if job.spec.table.is_some() { job.at(&["table"]) } else { (0, 0) };
                let same = if *table == made.as_str() { "" } else { ", as readers of the lake see it" };
                let message = format!("table `{made}` is written by `{file}` already{same}");
                candidate.problems.push(job.source.error(
                    at,
                    message,
                    "a table belongs to one job: give one another `table:`",
                ));
            }
            None => {
                tables.insert(key, (job.file.clone(), made.to_string()));
            }
        }
    }
}

/// What is known of a table while the project is put together.
struct Tables {
    made: BTreeMap<String, (JobName, Kind)>,
    broken: BTreeSet<String>,
}

impl Tables {
    fn new(candidates: &[Candidate], broken: BTreeSet<String>) -> Self {
        let mut made = BTreeMap::new();
        for Candidate { job, .. } in candidates {
            if let Some(table) = &job.table {
                made.entry(table.as_str().to_lowercase()).or_insert_with(|| (job.name.clone(), job.spec.kind));
            }
        }
        Self { made, broken }
    }

    fn kind(&self, table: &str) -> Option<Kind> {
        self.made.get(&table.to_lowercase()).map(|(_, kind)| *kind)
    }

    fn knows(&self, table: &str) -> bool {
        self.kind(table).is_some() || self.broken.contains(&table.to_lowercase())
    }

    fn near(&self, table: &str) -> Option<&str> {
        nearest(table, self.made.keys().map(String::as_str))
    }
}

/// Checks what a job says of other tables and of connections.
fn references(candidate: &Candidate, tables: &Tables, project: &Project) -> Vec<Problem> {
    let job = &candidate.job;
    let source = &job.source;
    let own = |name: &str| job.table.as_ref().is_some_and(|table| name.eq_ignore_ascii_case(table.as_str()));
    let mut problems = Vec::new();
    for (at, wait) in &candidate.waits {
        let on_self = wait.is_self() || own(&wait.table);
        if on_self && job.table.is_none() {
            let message = "the job waits for its own table, and has none";
            problems.push(source.error(*at, message, "a job with `tasks:` publishes no table: remove the wait"));
        } else if on_self && matches!(wait.reach, Reach::Offset(0) | Reach::Upto) {
            let message = "the job waits for the partition that it writes itself";
            problems.push(source.error(*at, message, "write `self@-1` for the partition before"));
        } else if job.is_view() {
            let message = format!("a view cannot wait for `{}`: it is computed when it is read", wait.table);
            problems.push(source.error(*at, message, format!("write `{0}`, or `latest::{0}`", wait.table)));
        } else if !on_self && tables.kind(&wait.table) == Some(Kind::View) {
            let message = format!("`{}` is a view and has no partitions to wait for", wait.table);
            problems.push(source.error(
                *at,
                message,
                format!("read it as `{}`, and wait for the tables behind it", wait.table),
            ));
        } else if !on_self && !tables.knows(&wait.table) {
            let hint = match tables.near(&wait.table) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    "that is right if somebody else writes it: the run waits until its partition is there".to_owned()
                }
            };
            problems.push(source.warning(*at, format!("no job of this project makes `{}`", wait.table), hint));
        }
    }
    for (at, table) in &candidate.latest {
        if !own(table) && !tables.knows(table) {
            let hint = tables.near(table).map_or_else(
                || "that is right if somebody else writes it".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            problems.push(source.warning(*at, format!("no job of this project makes `{table}`"), hint));
        }
    }
    if !job.is_view() {
        let waited = |table: &str| candidate.waits.iter().any(|(_, w)| w.table == table || (w.is_self() && own(table)));
        let mut told = BTreeSet::new();
        for (at, table) in &candidate.plain {
            let managed = tables.kind(table).is_some_and(|kind| kind != Kind::View);
            if managed && !waited(table) && told.insert(table) {
                let message = format!("`{table}` is read without waiting for it");
                let hint =
                    format!("write `wait::{table}` for this run's partitions, or `latest::{table}` for the newest");
                problems.push(source.warning(*at, message, hint));
            }
        }
    }
    for (name, column) in job.spec.columns.iter() {
        for (n, check) in column.checks.iter().enumerate() {
            let ColumnCheck::Relationships(other) = check else { continue };
            if !own(&other.table) && !tables.knows(&other.table) {
                let hint = tables.near(&other.table).map_or_else(
                    || "that is right if somebody else writes it".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                let at = job.at(&["columns", name, "checks", &n.to_string(), "relationships", "table"]);
                problems.push(source.warning(at, format!("no job of this project makes `{}`", other.table), hint));
            }
        }
    }
    if let Some(JobAlerts::Targets(names)) = &job.spec.alerts {
        for (n, name) in names.iter().enumerate() {
            if let Err(error) = project.config.alerts.target(name) {
                let hint = headworks_domain::Fault::hint(&error).unwrap_or_default();
                problems.push(source.error(job.at(&["alerts", &n.to_string()]), error.to_string(), hint));
            }
        }
    }
    if let Some(import) = job.import()
        && let Err(error) = project.config.connection(&import.connection)
    {
        let hint = headworks_domain::Fault::hint(&error).unwrap_or_default();
        problems.push(source.error(job.at(&["import", "connection"]), error.to_string(), hint));
    }
    problems
}

/// Finds jobs that wait for each other in a circle.
fn refuse_circles(candidates: &mut [Candidate]) {
    let made = |(n, c): (usize, &Candidate)| Some((c.job.table.as_ref()?.as_str().to_lowercase(), n));
    let makers: BTreeMap<String, usize> = candidates.iter().enumerate().rev().filter_map(made).collect();
    let mut edges: Vec<Vec<(usize, At)>> = Vec::with_capacity(candidates.len());
    for (n, candidate) in candidates.iter().enumerate() {
        let mut out = Vec::new();
        for (at, wait) in &candidate.waits {
            let table = waits::table_of(&candidate.job, wait).map(|t| t.as_str().to_lowercase());
            let Some(&maker) = table.and_then(|t| makers.get(&t)) else { continue };
            let grain = candidates[maker].job.grain;
            if maker != n && waits::is_simultaneous(candidate.job.grain, grain, wait.reach) {
                out.push((maker, *at));
            }
        }
        edges.push(out);
    }
    for circle in circles(&edges) {
        let names: Vec<String> =
            circle.iter().chain(circle.first()).map(|n| format!("`{}`", candidates[*n].job.name)).collect();
        let next = circle.get(1).copied().unwrap_or(circle[0]);
        let at = edges[circle[0]].iter().find(|(to, _)| *to == next).map_or((0, 0), |(_, at)| *at);
        // Told once; but none of its jobs can run.
        let message = format!("these jobs wait for each other in a circle: {}", names.join(" -> "));
        let hint = "let one of them wait for the partition before, as `wait::t@-1`";
        let problem = candidates[circle[0]].job.source.error(at, message, hint);
        candidates[circle[0]].problems.push(problem);
        for member in circle {
            candidates[member].circular = true;
        }
    }
}

/// Circles of a graph, each once, beginning with its smallest member. Without recursion: chains may be long.
pub(crate) fn circles(edges: &[Vec<(usize, At)>]) -> Vec<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; edges.len()];
    let mut found = Vec::new();
    for start in 0..edges.len() {
        if marks[start] != Mark::New {
            continue;
        }
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        marks[start] = Mark::Open;
        while let Some((node, next)) = path.last_mut() {
            let Some((to, _)) = edges[*node].get(*next).copied() else {
                marks[*node] = Mark::Done;
                path.pop();
                continue;
            };
            *next += 1;
            match marks[to] {
                Mark::New => {
                    marks[to] = Mark::Open;
                    path.push((to, 0));
                }
                Mark::Open => {
                    let from = path.iter().position(|(n, _)| *n == to).unwrap_or(0);
                    let mut circle: Vec<usize> = path[from..].iter().map(|(n, _)| *n).collect();
                    let smallest = circle.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(i, _)| i);
                    circle.rotate_left(smallest);
                    if !found.contains(&circle) {
                        found.push(circle);
                    }
                }
                Mark::Done => {}
            }
        }
    }
    found
}
