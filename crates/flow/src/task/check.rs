//! What the types of tasks cannot say: names, order, pools, macros, and what the files and queries hold.

use std::collections::{BTreeMap, BTreeSet};

use headworks_domain::{Problem, nearest};

use super::{
    Command, EachSpec, HttpTask, PythonTask, TaskAction, TaskSpec,
    fill::{self, Unfilled, names_later, outputs_named},
};
use crate::{
    check::{circles, pool_problem},
    job::Job,
    machine::Rule,
    project::Project,
    schema::listed,
    source::At,
    spec::Kind,
    sql,
};

/// The most tasks of a job file.
const TASKS_MAX: usize = 1000;

/// The most bytes of a task's name: its items add their numbers.
const NAME_BYTES_MAX: usize = 100;

/// Everything that is wrong with a job's tasks. `macros` are those of a sample run.
pub(crate) fn task_problems(job: &Job, project: &Project, macros: &minijinja::Value) -> Vec<Problem> {
    let mut checker = Checker { job, project, problems: Vec::new() };
    checker.header();
    let tasks: Vec<(&str, &TaskSpec)> = job.spec.tasks.iter().collect();
    if tasks.len() > TASKS_MAX {
        let message = format!("the job has {} tasks, and {TASKS_MAX} is the most", tasks.len());
        checker.fail(&["tasks"], message, "let one task go through a list with `each:`, or split the job");
        return checker.problems;
    }
    let before = checker.order(&tasks);
    for (place, (name, task)) in tasks.iter().enumerate() {
        checker.name(name);
        checker.bounds(name, task);
        checker.each(name, task, macros);
        checker.action(name, task, macros);
        let known: BTreeSet<&str> = before[place].iter().map(|n| tasks[*n].0).collect();
        checker.outputs(name, task, &known);
    }
    checker.problems
}

struct Checker<'a> {
    job: &'a Job,
    project: &'a Project,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn fail(&mut self, path: &[&str], message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(self.job.source.error(self.job.at(path), message, hint));
    }

    /// Keys of the header that speak of a table.
    fn header(&mut self) {
        let spec = &self.job.spec;
        for (key, given) in [
            ("table", spec.table.is_some()),
            ("kind", spec.kind != Kind::default()),
            ("key", !spec.key.is_empty()),
            ("partition_by", !spec.partition_by.is_empty()),
            ("columns", !spec.columns.is_empty()),
            ("checks", !spec.checks.is_empty()),
            ("retention", spec.retention.is_some()),
        ] {
            if given {
                let message = format!("a job with `tasks:` cannot have `{key}`");
                self.fail(&[key], message, "its tasks publish no table: remove it");
            }
        }
    }

    fn name(&mut self, name: &str) {
        let plain = name.chars().all(|c| c.is_alphanumeric() || c == '_')
            && name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let reason = if !plain || name.len() > NAME_BYTES_MAX {
            "it may have letters, digits and `_`, 100 bytes in all, and no digit first"
        } else if name.starts_with("wait_") {
            "names that begin so belong to the waits"
        } else {
            return;
        };
        self.fail(&["tasks", name], format!("`{name}` cannot be a task's name: {reason}"), "give it another name");
    }

    /// Checks what comes after what; the tasks before each, near and far.
    fn order(&mut self, tasks: &[(&str, &TaskSpec)]) -> Vec<BTreeSet<usize>> {
        let places: BTreeMap<&str, usize> = tasks.iter().enumerate().map(|(n, (name, _))| (*name, n)).collect();
        let mut edges: Vec<Vec<(usize, At)>> = Vec::with_capacity(tasks.len());
        for (name, task) in tasks {
            let mut out = Vec::new();
            let mut seen = BTreeSet::new();
            for (n, parent) in task.after.iter().enumerate() {
                let path = ["tasks", name, "after", &n.to_string()].map(str::to_owned);
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                if !seen.insert(parent) {
                    self.fail(&path, format!("`{parent}` is named twice"), "keep one of them");
                } else if let Some(place) = places.get(parent.as_str()) {
                    out.push((*place, self.job.at(&path)));
                } else {
                    let others = || places.keys().copied().filter(|other| other != name);
                    let hint = match nearest(parent, others()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("the other tasks are {}", listed(others())),
                    };
                    self.fail(&path, format!("the job has no task `{parent}`"), hint);
                }
            }
            if task.after.is_empty() && task.rule != Rule::AllSuccess {
                let hint = "name the tasks that it looks at in `after:`, or remove the rule";
                self.fail(&["tasks", name, "rule"], format!("task `{name}` has a rule and nothing before it"), hint);
            }
            edges.push(out);
        }
        for circle in circles(&edges) {
            let names: Vec<String> =
                circle.iter().chain(circle.first()).map(|n| format!("`{}`", tasks[*n].0)).collect();
            let next = circle.get(1).copied().unwrap_or(circle[0]);
            let at = edges[circle[0]].iter().find(|(to, _)| *to == next).map_or((0, 0), |(_, at)| *at);
            let message = format!("these tasks come after each other in a circle: {}", names.join(" -> "));
            self.problems.push(self.job.source.error(at, message, "remove one of these from its `after:`"));
        }
        all_before(&edges)
    }

    fn bounds(&mut self, name: &str, task: &TaskSpec) {
        let pools = &self.project.config.pools;
        if let Some(pool) = &task.pool
            && let Some((message, hint)) = pool_problem(pools, pool)
        {
            self.fail(&["tasks", name, "pool"], message, hint);
        }
        let Some(slots) = task.slots else { return };
        match task.pool.as_ref().or(self.job.spec.pool.as_ref()) {
            None => self.fail(
                &["tasks", name, "slots"],
                format!("task `{name}` takes slots and has no pool"),
                "name it in `pool:`; without a pool a task counts as one",
            ),
            Some(pool) if pools.get(pool).is_some_and(|all| *all < slots) => self.fail(
                &["tasks", name, "slots"],
                format!("task `{name}` takes {slots} slots, and pool `{pool}` has {}", pools[pool]),
                "take fewer, or give the pool more in [pools] of headworks.toml",
            ),
            Some(_) => {}
        }
    }

    fn each(&mut self, name: &str, task: &TaskSpec, macros: &minijinja::Value) {
        let Some(each) = &task.each else { return };
        if let Err((message, hint)) = each.planned(macros) {
            self.fail(&["tasks", name, "each"], message, hint);
        }
    }

    fn action(&mut self, name: &str, task: &TaskSpec, macros: &minijinja::Value) {
        let context = fill::foreseen(Some(macros), task.each.is_some());
        let filled = match fill::fill(&task.action, &context, None) {
            Ok(filled) => filled,
            Err(Unfilled { path, message, hint }) => {
                let path: Vec<&str> = ["tasks", name].into_iter().chain(path.iter().map(String::as_str)).collect();
                return self.fail(&path, message, hint);
            }
        };
        match (&task.action, &filled) {
            (TaskAction::Shell(shell), _) => self.command(name, &shell.command),
            (TaskAction::Python(python), TaskAction::Python(filled)) => self.python(name, python, filled),
            (TaskAction::Http(http), _) => self.http(name, http),
            (TaskAction::Sql(written), TaskAction::Sql(filled)) if !names_later(&written.sql) => {
                self.sql(name, &filled.sql);
            }
            _ => {}
        }
        let Some(process) = task.action.process() else { return };
        for variable in process.env.keys() {
            let plain = variable.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && variable.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let path = ["tasks", name, "env", variable];
            if !plain {
                let hint = "use letters, digits and `_`";
                self.fail(&path, format!("`{variable}` cannot be a variable's name"), hint);
            } else if variable.starts_with("HEADWORKS_") {
                let hint = "give your own variable another name";
                self.fail(&path, format!("`{variable}` is set by Headworks"), hint);
            }
        }
    }

    fn command(&mut self, name: &str, command: &Command) {
        let empty = match command {
            Command::Text(text) => text.trim().is_empty(),
            Command::Words(words) => words.first().is_none_or(String::is_empty),
        };
        if empty {
            let hint = "write a text for /bin/sh, or a list as `[make, all]`";
            self.fail(&["tasks", name, "command"], format!("the command of task `{name}` is empty"), hint);
        }
    }

    fn python(&mut self, name: &str, written: &PythonTask, filled: &PythonTask) {
        match (&written.script, &written.file) {
            (None, None) => {
                let hint = "give it a `script:`, or a `file:` of the project";
                self.fail(&["tasks", name], format!("task `{name}` has nothing to run"), hint);
            }
            (Some(_), Some(_)) => {
                let message = format!("task `{name}` has both a script and a file");
                self.fail(&["tasks", name, "file"], message, "keep one of them");
            }
            (None, Some(file)) if !names_later(file) => {
                let file = filled.file.as_ref().unwrap_or(file);
                if !self.project.root.join(file).is_file() {
                    let hint = "name a file relative to the project's folder, as `scripts/load.py`";
                    self.fail(&["tasks", name, "file"], format!("there is no file `{file}`"), hint);
                }
            }
            _ => {}
        }
    }

    fn http(&mut self, name: &str, http: &HttpTask) {
        if !["http://", "https://", "{{", "{%"].iter().any(|start| http.url.starts_with(start)) {
            let hint = "begin it with `https://` or `http://`";
            self.fail(&["tasks", name, "url"], format!("`{}` is not an address", http.url), hint);
        }
    }

    fn sql(&mut self, name: &str, text: &str) {
        let analysis = sql::analyse(text, "");
        for problem in analysis.problems {
            self.fail(&["tasks", name, "sql"], problem.message, problem.hint);
        }
        if !analysis.waits.is_empty() || !analysis.latest.is_empty() {
            let message = format!("the SQL of task `{name}` reads a table with a prefix");
            let hint = "name the tables to wait for in the header's `wait:`, and read them by their plain names";
            self.fail(&["tasks", name, "sql"], message, hint);
        }
    }

    /// A task reads the outputs of those that are surely over before it starts.
    fn outputs(&mut self, name: &str, task: &TaskSpec, before: &BTreeSet<&str>) {
        let mut json = serde_json::to_value(&task.action).expect("what a file says is plain data");
        let mut named: Vec<(Vec<String>, String)> = Vec::new();
        let mut path = Vec::new();
        let filled = fill::fill_texts(&mut json, &mut path, &mut |path, text| {
            named.extend(outputs_named(text).into_iter().map(|of| (path.to_vec(), of)));
            Ok::<_, std::convert::Infallible>(text.to_owned())
        });
        let Ok(()) = filled;
        if let Some(EachSpec::Expression(text)) = &task.each {
            named.extend(outputs_named(text).into_iter().map(|of| (vec!["each".to_owned()], of)));
        }
        for (path, of) in named {
            if before.contains(of.as_str()) {
                continue;
            }
            let hint = match nearest(&of, before.iter().copied()) {
                Some(near) => format!("did you mean `outputs.{near}`?"),
                None if self.job.spec.tasks.get(&of).is_some() => format!("add `{of}` to its `after:`"),
                None if before.is_empty() => "no task comes before it".to_owned(),
                None => format!("before it come {}", listed(before.iter().copied())),
            };
            let path: Vec<&str> = ["tasks", name].into_iter().chain(path.iter().map(String::as_str)).collect();
            self.fail(&path, format!("task `{name}` reads the output of `{of}`, which does not come before it"), hint);
        }
    }
}

/// For each task those that come before it, near and far. Without recursion: chains may be long.
fn all_before(edges: &[Vec<(usize, At)>]) -> Vec<BTreeSet<usize>> {
    let reach = |start: usize| {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(place) = open.pop() {
            for (parent, _) in &edges[place] {
                if reached.insert(*parent) {
                    open.push(*parent);
                }
            }
        }
        reached
    };
    (0..edges.len()).map(reach).collect()
}
