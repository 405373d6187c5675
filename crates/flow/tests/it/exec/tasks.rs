//! Runs of a job file's own tasks: each a segment by itself, with outputs, items and pools.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use headworks_domain::ErrorKind;
use headworks_flow::{
    Answer, Each, Question, TaskKind, TaskOptions, TaskPlan,
    exec::{Done, Executor, RunShape, Segment, Stop, Summary, TaskRunner},
    machine::{Failure, RetryPolicy, Rule},
};
use serde_json::{Value, json};

use super::{
    Setup,
    memory::{Handle, Shapes, clock},
    request, run, shape,
};

/// A run of tasks, `name: parent parent`, changed by `options`.
fn tasks(n: i64, plan: &[&str], options: impl Fn(&str, &mut TaskOptions)) -> RunShape {
    let task = |line: &&str| {
        let (name, after) = line.split_once(':').unwrap();
        let mut own = TaskOptions { alone: true, ..TaskOptions::default() };
        options(name, &mut own);
        let after = after.split_whitespace().map(|parent| parent.parse().unwrap()).collect();
        TaskPlan { name: name.parse().unwrap(), kind: TaskKind::Shell, after, options: own }
    };
    let tasks = plan.iter().map(task).collect();
    RunShape { table: None, partitions: Vec::new(), tasks, ..shape("tasks", n, &[]) }
}

/// Writes down what was started with what, and does what the names of the tasks say.
#[derive(Default)]
struct Doer {
    seen: Mutex<Vec<String>>,
    attempts: Mutex<Vec<u32>>,
    running: Mutex<BTreeMap<String, usize>>,
    most: Mutex<BTreeMap<String, usize>>,
}

#[async_trait]
impl TaskRunner for Doer {
    async fn run(&self, segment: &mut Segment) -> Result<Done, Stop> {
        let name = segment.tasks[0].clone();
        let pool = segment.shape.tasks[segment.input.place].options.pool.clone().unwrap_or_default();
        segment.begin(&name);
        let item = segment.input.item.as_ref().map(|(item, _)| item.clone());
        let outputs = serde_json::to_string(&*segment.input.outputs).unwrap();
        self.seen.lock().unwrap().push(format!("{name} {} {outputs}", item.clone().unwrap_or_default()));
        self.attempts.lock().unwrap().push(segment.attempt());
        let now = {
            let mut running = self.running.lock().unwrap();
            let now = running.entry(pool.clone()).or_default();
            *now += 1;
            *now
        };
        self.most.lock().unwrap().entry(pool.clone()).and_modify(|most| *most = now.max(*most)).or_insert(now);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        *self.running.lock().unwrap().entry(pool).or_default() -= 1;
        let failure =
            |retryable| Failure::new(ErrorKind::Invalid, "TEST", format!("{name} broke")).with_retryable(retryable);
        match name.as_str() {
            "shaky" if segment.input.tries < 3 => return Err(failure(true).into()),
            "bad" => return Err(failure(false).into()),
            _ => {}
        }
        segment.end(&name);
        let output = match name.as_str() {
            "list" => Some(json!({"files": ["a", "b"]})),
            _ => item.map(|item| json!(format!("{}!", item.as_str().unwrap_or("?")))),
        };
        Ok(Done { output, ..Done::default() })
    }

    async fn look(&self, question: &Question) -> Result<Answer, Failure> {
        panic!("nobody waits for {question} here")
    }
}

async fn carry_out(shapes: Vec<RunShape>, change: impl Fn(&mut Setup)) -> (Summary, Doer) {
    let mut setup = Setup::new(shapes);
    change(&mut setup);
    let doer = Arc::new(Doer::default());
    let handle = Handle::new(&setup.database, 1, 0);
    let executor = Executor {
        store: handle.clone(),
        partitions: handle.clone(),
        planner: Arc::new(Shapes(setup.shapes.iter().map(|s| (request(s), s.clone())).collect(), setup.pools.clone())),
        runner: doer.clone(),
        clock: clock(),
        options: setup.options.clone(),
    };
    let summary = run(&executor, setup.requests()).await;
    drop(executor);
    (summary, Arc::into_inner(doer).unwrap())
}

#[tokio::test]
async fn outputs_and_items_go_from_task_to_task() {
    let plan = ["list:", "load: list", "join: load", "aside:"];
    let shape = tasks(0, &plan, |name, options| {
        options.each = (name == "load").then(|| Each::Later("outputs.list.files".to_owned()));
    });
    let (summary, doer) = carry_out(vec![shape], |_| {}).await;
    assert!(summary.is_success(), "{summary:?}");
    let mut seen = doer.seen.lock().unwrap().clone();
    let list = r#"{"list":{"files":["a","b"]}}"#;
    assert_eq!(seen.pop().unwrap(), r#"join null {"list":{"files":["a","b"]},"load":["a!","b!"]}"#);
    seen.sort();
    assert_eq!(
        seen,
        ["aside null {}", "list null {}", &format!("load.0 \"a\" {list}"), &format!("load.1 \"b\" {list}")]
    );
    let mut attempts = doer.attempts.into_inner().unwrap();
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 2, 3, 4, 5], "no two share a number");
}

#[tokio::test]
async fn a_run_shows_what_failed_and_did_not_mend() {
    let plan = ["shaky:", "bad:", "alarm: bad", "after: bad"];
    let shape = tasks(0, &plan, |name, options| {
        options.retry = Some(RetryPolicy { delay: Duration::from_millis(1), ..RetryPolicy::default() });
        options.rule = if name == "alarm" { Rule::OneFailed } else { Rule::AllSuccess };
    });
    let (summary, doer) = carry_out(vec![shape], |_| {}).await;
    assert_eq!((summary.counts.failed, summary.failed[0].failure.message.as_str()), (1, "bad broke"));
    let seen = doer.seen.lock().unwrap();
    let times = |name: &str| seen.iter().filter(|line| line.starts_with(&format!("{name} "))).count();
    assert_eq!([times("shaky"), times("bad"), times("alarm"), times("after")], [3, 1, 1, 0]);
}

#[tokio::test]
async fn a_list_that_is_none_fails_its_task() {
    let shape = tasks(0, &["list:", "load: list"], |name, options| {
        options.each = (name == "load").then(|| Each::Later("outputs.list".to_owned()));
    });
    let (summary, _) = carry_out(vec![shape], |_| {}).await;
    let message = &summary.failed[0].failure.message;
    assert_eq!(message, "the list of task `load` cannot be had: `outputs.list` is a map, not a list");
}

#[tokio::test]
async fn pools_and_job_limits_bound_what_runs() {
    let items = Each::Items((0..20).map(Value::from).collect());
    let shapes: Vec<RunShape> = (0..6)
        .map(|n| {
            let mut shape = tasks(n, &["a:", "b:", "wide:"], |name, options| {
                options.each = (name == "a").then(|| items.clone());
                options.pool = (name != "b").then(|| "two".to_owned());
                options.slots = if name == "wide" { 2 } else { 1 };
            });
            shape.limits.active_runs_max = Some(2);
            shape
        })
        .collect();
    let (summary, doer) = carry_out(shapes, |setup| {
        setup.options.tasks_max = 7;
        setup.pools = [("two".to_owned(), 2)].into();
    })
    .await;
    assert!(summary.is_success(), "{summary:?}");
    assert_eq!(doer.most.lock().unwrap()["two"], 2);
    assert_eq!(doer.seen.lock().unwrap().len(), 6 * 22);
    assert_eq!(summary.counts.success, 6);
}
