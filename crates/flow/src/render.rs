//! Renders a job's SQL for one interval: macros first, then the tables; and finds the way back to the file's lines.

use std::{collections::BTreeMap, ops::Range};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use headworks_domain::{Interval, Problem, TableName};
use minijinja::Value;
use serde_json::Map;

use crate::{
    job::{Job, SqlBody},
    plan::RunContext,
    project::Project,
    source::At,
    spec::{TableCheck, WaitRef},
    sql::{self, Analysis},
    template::{DateMacros, ENVIRONMENT, LineOrigin, expand, template_message, template_problem},
};

/// A job's final SQL, and where its lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// One query without prefixes, macros or a semicolon at its end.
    pub sql: String,
    /// For each line of `sql`.
    lines: Vec<LineOrigin>,
}

impl Rendered {
    /// The line and column of the job file for a place in `sql`, both counted from 1; 0 where there is none to tell.
    pub fn place(&self, line: usize, column: usize) -> (usize, usize) {
        let Some(origin) = line.checked_sub(1).and_then(|n| self.lines.get(n)) else { return (0, 0) };
        let shift: isize = origin.shifts.iter().filter(|(from, _)| column >= *from).map(|(_, by)| by).sum();
        let before = column.saturating_add_signed(shift);
        let known = column > 0 && origin.same > 0 && before <= origin.same + 1;
        (origin.line, if origin.line > 0 && known { before + origin.indent } else { 0 })
    }
}

/// A rendered query with the tables it reads.
pub(crate) struct RenderedQuery {
    pub(crate) rendered: Rendered,
    pub(crate) waits: Vec<WaitRef>,
    pub(crate) latest: Vec<TableName>,
}

impl Job {
    /// Renders the body for an interval. Errors: every problem, at its line of the file.
    pub(crate) fn render(
        &self,
        project: &Project,
        body: &SqlBody,
        interval: Interval,
        context: &RunContext,
    ) -> Result<RenderedQuery, Vec<Problem>> {
        let (rendered, analysis, problems) = self.render_body(&project.config.vars, body, interval, context);
        if !problems.is_empty() {
            return Err(problems);
        }
        let latest = analysis.latest.iter().filter_map(|(_, table)| table.parse().ok()).collect();
        let waits = analysis.waits.into_iter().map(|(_, wait)| wait).collect();
        Ok(RenderedQuery { rendered, waits, latest })
    }

    /// Renders the body as far as that goes, with what it reads and what is wrong.
    ///
    /// Places in the analysis are those of the file already.
    pub(crate) fn render_body(
        &self,
        vars: &BTreeMap<String, String>,
        body: &SqlBody,
        interval: Interval,
        context: &RunContext,
    ) -> (Rendered, Analysis, Vec<Problem>) {
        let macros = self.macros(vars, interval, context);
        let (text, origins) = match expand(body, &macros) {
            Ok(expanded) => expanded,
            Err(error) => {
                let problem = template_problem(&self.source, body, &error);
                return (Rendered { sql: String::new(), lines: Vec::new() }, Analysis::default(), vec![problem]);
            }
        };
        let mut analysis = sql::analyse(&text, self.table_name());
        let before = Rendered { sql: text.clone(), lines: origins.clone() };
        let place = |at: At| if at.0 == 0 { (0, 0) } else { before.place(at.0, at.1) };
        let problems = analysis
            .problems
            .iter()
            .map(|p| self.source.error(place(p.at), p.message.clone(), p.hint.clone()))
            .collect();
        for (at, _) in &mut analysis.waits {
            *at = place(*at);
        }
        for (at, _) in analysis.latest.iter_mut().chain(&mut analysis.plain) {
            *at = place(*at);
        }
        let rendered = trimmed(&analysis.sql, shifted(&text, &analysis.edits, origins));
        (rendered, analysis, problems)
    }

    /// The job's table checks with their macros filled in for a run. Errors: what is wrong with which check.
    pub fn render_checks(
        &self,
        project: &Project,
        interval: Interval,
        context: &RunContext,
    ) -> Result<Vec<TableCheck>, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut checks = Vec::new();
        for check in self.filled_checks(&project.config.vars, interval, context) {
            match check {
                Ok(check) => checks.push(check),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(checks) } else { Err(problems) }
    }

    /// The table checks with their macros filled in, or what is wrong with each.
    pub(crate) fn filled_checks(
        &self,
        vars: &BTreeMap<String, String>,
        interval: Interval,
        context: &RunContext,
    ) -> Vec<Result<TableCheck, Problem>> {
        let macros = self.macros(vars, interval, context);
        let fill = |(n, check): (usize, &TableCheck)| {
            let mut check = check.clone();
            if let TableCheck::Sql(check) = &mut check {
                check.sql = ENVIRONMENT.render_str(&check.sql, &macros).map_err(|error| {
                    let (message, hint) = template_message(&check.sql, &error);
                    self.source.error(self.at(&["checks", &n.to_string(), "sql"]), message, hint)
                })?;
            }
            Ok(check)
        };
        self.spec.checks.iter().enumerate().map(fill).collect()
    }

    /// What a template may name.
    pub(crate) fn macros(&self, vars: &BTreeMap<String, String>, interval: Interval, context: &RunContext) -> Value {
        let mut params = self.spec.params.clone();
        params.extend(context.params.clone());
        let mut names: Vec<(&'static str, Value)> = vec![
            ("run_id", Value::from(context.run_id.as_str())),
            ("env", Value::from(context.env.as_str())),
            ("params", Value::from_serialize(Map::from_iter(params))),
            ("var", Value::from_serialize(vars)),
            ("macros", Value::from_object(DateMacros)),
        ];
        names.extend(self.table.as_ref().map(|table| ("table", Value::from(table.as_str()))));
        // A view is computed whenever it is read: it has no interval.
        if !self.is_view() {
            names.extend(self.interval_macros(interval));
        }
        Value::from_iter(names)
    }

    fn interval_macros(&self, interval: Interval) -> Vec<(&'static str, Value)> {
        let grid = self.grid();
        let touched = grid.touched(&interval);
        let ds = grid.key(*touched.end()).ds;
        let ts = grid.start(*touched.end());
        let text = |value: String| Value::from(value);
        let instant = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, false);
        let beside = |number| grid.key(number).ds.to_string();
        vec![
            ("ds", text(ds.to_string())),
            ("ds_nodash", text(ds.to_string().replace('-', ""))),
            ("ts", text(instant(ts))),
            ("ts_nodash", text(ts.format("%Y%m%dT%H%M%S").to_string())),
            ("ts_hour", text(ts.format("%Y-%m-%dT%H").to_string())),
            ("data_interval_start", text(instant(interval.start()))),
            ("data_interval_end", text(instant(interval.end()))),
            ("prev_ds", text(beside(touched.start() - 1))),
            ("next_ds", text(beside(touched.end() + 1))),
        ]
    }
}

/// Notes on each line how far the replaced tables moved its columns.
fn shifted(text: &str, edits: &[(Range<usize>, String)], mut lines: Vec<LineOrigin>) -> Vec<LineOrigin> {
    for (range, new) in edits {
        let line_start = text[..range.start].rfind('\n').map_or(0, |n| n + 1);
        let index = text[..range.start].matches('\n').count();
        let Some(origin) = lines.get_mut(index) else { continue };
        let old = &text[range.clone()];
        let count = |text: &str| text.chars().count() as isize;
        let moved: isize = origin.shifts.iter().map(|(_, by)| by).sum();
        let start = count(&text[line_start..range.start]) - moved + 1;
        let prefix = old.find("::").map_or(0, |n| count(&old[..n + 2]));
        let column = |n: isize| usize::try_from(n).unwrap_or(1);
        // Within the new name, places are those of the old name behind its prefix; after it, what else went comes on top.
        origin.shifts.push((column(start), prefix));
        origin.shifts.push((column(start + count(new)), count(old) - count(new) - prefix));
    }
    lines
}

/// Takes blank lines off both ends, with their origins.
fn trimmed(sql: &str, mut lines: Vec<LineOrigin>) -> Rendered {
    let body = sql.trim_end();
    let blank = body.len() - body.trim_start().len();
    let cut = body[..blank].rfind('\n').map_or(0, |n| n + 1);
    let skipped = body[..cut].matches('\n').count();
    let body = &body[cut..];
    lines.drain(..skipped.min(lines.len()));
    lines.truncate(body.split('\n').count());
    Rendered { sql: body.to_owned(), lines }
}

/// The span of time that stands in for a run's when files are checked.
pub(crate) fn sample_interval(job: &Job) -> Interval {
    let grid = job.grid();
    let start = job.spec.start.or_else(|| "2024-01-01".parse().ok()).unwrap_or_default();
    let fallback = || Interval::new(DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + TimeDelta::days(1));
    grid.interval_of(start, None).or_else(|| fallback().ok()).expect("a day is not empty")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::{jobfile, plan::RunPlan};

    use super::*;

    fn job(text: &str) -> std::sync::Arc<Job> {
        let file = jobfile::read("jobs/t.sql".to_owned(), text.to_owned(), "t", chrono_tz::UTC);
        assert_eq!(file.problems, vec![]);
        std::sync::Arc::new(file.job.unwrap())
    }

    fn context() -> RunContext {
        RunContext { run_id: "r1".parse().unwrap(), env: "dev".to_owned(), params: Map::new() }
    }

    fn plan(text: &str, day: &str) -> Result<RunPlan, Vec<Problem>> {
        let job = job(text);
        let mut project = Project::default();
        project.config.vars.insert("country".to_owned(), "AE".to_owned());
        let interval = job.interval_of(day.parse().unwrap(), None).unwrap();
        job.plan_run(&project, interval, &context())
    }

    fn check(text: &str, day: &str, expected: &str) {
        let shown = match plan(text, day) {
            Ok(plan) => plan.sql.unwrap().sql,
            Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn macros_are_filled_in() {
        let header = "/* job\ntimezone: America/New_York\nparams: {n: 5}\n*/\n";
        for (template, expected) in [
            ("{{ ds }} {{ ds_nodash }}", "2013-03-10 20130310"),
            ("{{ ts }} {{ ts_nodash }} {{ ts_hour }}", "2013-03-10T05:00:00+00:00 20130310T050000 2013-03-10T05"),
            (
                "{{ data_interval_start }} {{ data_interval_end }}",
                "2013-03-10T05:00:00+00:00 2013-03-11T04:00:00+00:00",
            ),
            ("{{ prev_ds }} {{ next_ds }}", "2013-03-09 2013-03-11"),
            ("{{ run_id }} {{ table }} {{ env }} {{ params.n }} {{ var.country }}", "r1 t dev 5 AE"),
            ("{{ macros.ds_add(ds, -10) }} {{ macros.ds_format(ds, '%Y-%m-%d', '%d.%m.%y') }}", "2013-02-28 10.03.13"),
            ("{% for n in range(3) %}{{ n }}{% endfor %}", "012"),
        ] {
            check(&format!("{header}SELECT '{template}'"), "2013-03-10", &format!("SELECT '{expected}'"));
        }
        check(
            "/* job\ngrain: week\n*/SELECT '{{ ds }} {{ prev_ds }} {{ next_ds }}'",
            "2013-01-02",
            "SELECT '2013-01-06 2012-12-30 2013-01-13'",
        );
        check(
            "/* job\ngrain: hour\n*/SELECT '{{ ds }} {{ ts_hour }} {{ prev_ds }}'",
            "2013-01-02",
            "SELECT '2013-01-02 2013-01-02T00 2013-01-01'",
        );
    }

    #[test]
    fn problems_are_shown_in_the_file() {
        let header = "/* job\nowner: me\n*/\n";
        check(
            &format!("{header}SELECT\n  {{{{ dss }}}} AS x"),
            "2013-01-01",
            "error: `dss` is not there\n  --> jobs/t.sql:5:6\n   |\n 5 |   {{ dss }} AS x\n   |      ^\n  hint: did you mean `ds`?",
        );
        check(
            &format!("{header}{{% if ds > '2000' %}}\n  SELECT a b c\n{{% endif %}} FROM x"),
            "2013-01-01",
            "error: the SQL does not parse: expected: end of statement, found: c\n  --> jobs/t.sql:5:14\n   |\n 5 |   SELECT a b c\n   |              ^",
        );
        check(
            &format!("{header}SELECT '{{{{ ds }}}}' FROM wait::a JOIN wiat::b"),
            "2013-01-01",
            "error: `wiat::` is not a prefix of tables\n  --> jobs/t.sql:4\n   |\n 4 | SELECT '{{ ds }}' FROM wait::a JOIN wiat::b\n  \
             hint: did you mean `wait::b`?",
        );
        let fuel = "error: the macros take too long";
        let endless = format!(
            "{header}SELECT {{% for i in range(10000) %}}{{% for j in range(10000) %}}{{{{ j }}}}{{% endfor %}}{{% endfor %}}1"
        );
        let Err(problems) = plan(&endless, "2013-01-01") else { panic!("it ends") };
        assert!(problems[0].to_string().starts_with(fuel), "{}", problems[0]);
        let Err(problems) = plan(&format!("{header}SELECT {{{{ x"), "2013-01-01") else { panic!("it is not closed") };
        assert_eq!((problems[0].place.line, problems.len()), (4, 1));
    }

    #[test]
    fn rendered_places_lead_back_to_the_file() {
        let text = "/* job\nowner: me\n*/\n\nSELECT a,\n  b\nFROM wait::flights@-1 f\n{% for t in ['x', 'y'] %}\nJOIN {{ t }} USING (a)\n{%- endfor %}\nWHERE ds = '{{ ds }}' AND c > 1;\n";
        let sql = plan(text, "2013-01-01").unwrap().sql.unwrap();
        assert_eq!(
            sql.sql,
            "SELECT a,\n  b\nFROM flights f\n\nJOIN x USING (a)\nJOIN y USING (a)\nWHERE ds = '2013-01-01' AND c > 1"
        );
        for (place, expected) in [
            ((1, 8), (5, 8)),
            ((2, 3), (6, 3)),
            ((3, 6), (7, 12)),
            ((3, 14), (7, 23)),
            ((5, 1), (9, 1)),
            ((5, 6), (9, 6)),
            ((5, 9), (9, 0)),
            ((6, 2), (9, 2)),
            ((7, 12), (11, 12)),
            ((7, 30), (11, 0)),
            ((7, 0), (11, 0)),
            ((8, 1), (0, 0)),
            ((0, 0), (0, 0)),
        ] {
            assert_eq!(sql.place(place.0, place.1), expected, "{place:?}");
        }
        let one_line = plan("/* job */ SELECT 1 FROM wait::a x", "2013-01-01").unwrap().sql.unwrap();
        assert_eq!((one_line.sql.as_str(), one_line.place(1, 11)), (" SELECT 1 FROM a x", (1, 20)));
    }

    #[test]
    fn marks_never_stay() {
        let text = "/* job\n*/\nSELECT {# a\ncomment #} 1,\n{% raw %}'{{ x }}'{% endraw %}\n{% set y %}\nabc\n{% endset %}, '{{ y | trim | length }}'";
        let sql = plan(text, "2013-01-01").unwrap().sql.unwrap();
        assert_eq!(sql.sql, "SELECT  1,\n'{{ x }}'\n, '3'");
        let text = "/* job\n*/\nSELECT {# a\ncomment #} 1,\n{% raw %}'{{ x }}'{% endraw %}";
        let sql = plan(text, "2013-01-01").unwrap().sql.unwrap();
        assert_eq!((sql.sql.as_str(), sql.place(2, 2)), ("SELECT  1,\n'{{ x }}'", (5, 0)));
    }

    #[test]
    fn a_view_has_no_interval() {
        let Err(problems) = plan("/* job\nkind: view\n*/SELECT '{{ ds }}'", "2013-01-01") else { panic!("it has one") };
        assert_eq!(problems[0].message, "`ds` is not there");
        assert_eq!(problems[0].hint.as_deref(), Some("a view is computed whenever it is read, so it has no interval"));
        check("/* job\nkind: view\n*/SELECT '{{ env }}' FROM t", "2013-01-01", "SELECT 'dev' FROM t");
    }

    proptest! {
        #[test]
        fn any_body_is_safe(body in "(SELECT| |\\n|\\{\\{|\\}\\}|\\{%|%\\}|\\{#|#\\}| if 1 | endif |ds|'|wait::t|FROM|-|é|for x in [1] |endfor|;){0,30}") {
            let text = format!("/* job */{body}");
            let _ = plan(&text, "2013-01-01");
        }
    }
}
