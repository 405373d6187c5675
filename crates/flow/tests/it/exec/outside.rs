//! Runs that wait for the outside world, through the executor's loop.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use headworks_domain::ErrorKind;
use headworks_flow::{
    Answer, OutsideOn, Question, TaskKind, TaskOptions, TaskPlan,
    exec::{Done, Executor, RunShape, Segment, Stop, Summary, TaskRunner},
    machine::{Failure, State},
};

use super::{Setup, run, shape};

type Script = Box<dyn FnMut(usize) -> Result<Answer, Failure> + Send>;

/// Works as the worker does, and answers questions by a script that gets how often the question was asked before.
struct Seer {
    worker: Arc<dyn TaskRunner>,
    scripts: Mutex<BTreeMap<String, (usize, Script)>>,
}

impl Seer {
    fn looks(&self, file: &str) -> usize {
        self.scripts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[file].0
    }
}

#[async_trait]
impl TaskRunner for Seer {
    async fn run(&self, segment: &mut Segment) -> Result<Done, Stop> {
        self.worker.run(segment).await
    }

    async fn look(&self, question: &Question) -> Result<Answer, Failure> {
        let Question::File { file } = question else { panic!("only files here") };
        tokio::task::yield_now().await;
        // A script that panics holds the lock.
        let mut scripts = self.scripts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (asked, script) = scripts.get_mut(file).unwrap();
        *asked += 1;
        script(*asked - 1)
    }
}

/// The same run, which waits for a file too.
fn with_file(mut shape: RunShape, file: &str) -> RunShape {
    let task: headworks_domain::TaskName = "wait_file".parse().unwrap();
    let question = Arc::new(Question::File { file: file.to_owned() });
    shape.outside = vec![OutsideOn { task: task.clone(), question, every: Duration::from_millis(2) }];
    shape.tasks.iter_mut().find(|task| task.name.as_str() == "stage").unwrap().after.push(task.clone());
    shape
        .tasks
        .insert(0, TaskPlan { name: task, kind: TaskKind::Wait, after: Vec::new(), options: TaskOptions::default() });
    shape
}

fn seeing(setup: &Setup, scripts: Vec<(&str, Script)>) -> (Executor, Arc<Seer>) {
    let (mut executor, _) = setup.executor(1);
    let scripts = scripts.into_iter().map(|(file, script)| (file.to_owned(), (0, script))).collect();
    let seer = Arc::new(Seer { worker: Arc::clone(&executor.runner), scripts: Mutex::new(scripts) });
    executor.runner = seer.clone();
    (executor, seer)
}

async fn carried_out(setup: &Setup, scripts: Vec<(&str, Script)>) -> (Summary, Arc<Seer>) {
    let (executor, seer) = seeing(setup, scripts);
    (run(&executor, setup.requests()).await, seer)
}

/// Not there the first `times`.
fn after(times: usize) -> Script {
    Box::new(move |n| Ok(if n < times { Answer::not_yet("not there") } else { Answer::yes("there") }))
}

fn patient(shapes: Vec<RunShape>) -> Setup {
    let mut setup = Setup::new(shapes);
    setup.options.wait = Duration::from_secs(60);
    setup
}

#[tokio::test]
async fn a_file_that_comes_later_starts_the_run() {
    let shapes = vec![with_file(shape("a", 0, &[]), "in/a"), shape("b", 0, &[("a", vec![0])])];
    let setup = patient(shapes);
    let passing = |_| Err(Failure::new(ErrorKind::Unavailable, "TEST", "it is away"));
    let script: Script = Box::new(move |n| if n == 1 { passing(n) } else { after(4)(n) });
    let (summary, seer) = carried_out(&setup, vec![("in/a", script)]).await;
    assert!(summary.is_success(), "{summary:?}");
    assert_eq!(seer.looks("in/a"), 5, "no look after the one that found it");
    assert_eq!(setup.database.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn a_run_that_misses_it_says_what_it_found() {
    let mut shapes = vec![with_file(shape("a", 0, &[]), "in/a"), shape("b", 0, &[("a", vec![0])]), shape("c", 0, &[])];
    shapes[0].outside[0].every = Duration::from_secs(3_600);
    let setup = Setup::new(shapes);
    let (summary, seer) = carried_out(&setup, vec![("in/a", after(99))]).await;
    let blocked: Vec<String> = summary
        .blocked
        .iter()
        .map(|run| format!("{}\nhint: {}", run.failure, run.failure.hint.clone().unwrap()))
        .collect();
    assert_eq!(
        blocked,
        [
            "job `a` cannot run for ds=2013-01-01: it waits for file `in/a` (not there)\n\
             hint: see what is there now with `headworks why a --ds 2013-01-01`, or wait for it with `--wait 10m`",
            "job `b` cannot run for ds=2013-01-01: table `a` has no such partition\n\
             hint: runs of `a` lack their own inputs: see to them first, and run this command again",
        ]
    );
    assert_eq!((seer.looks("in/a"), summary.counts.success), (1, 1));
    // Once it is there, the same command goes on.
    let (summary, _) = carried_out(&setup, vec![("in/a", after(0))]).await;
    assert!(summary.is_success(), "{summary:?}");
}

#[tokio::test]
async fn what_cannot_be_looked_at_fails_the_run_and_no_other() {
    let shapes = vec![
        with_file(shape("a", 0, &[]), "denied"),
        with_file(shape("b", 0, &[]), "panics"),
        with_file(shape("c", 0, &[]), "there"),
    ];
    let denied: Script = Box::new(|_| Err(Failure::new(ErrorKind::Denied, "TEST", "it is not yours").with_hint("ask")));
    let panics: Script = Box::new(|_| -> Result<Answer, Failure> { panic!("a bug in a look") });
    let scripts = vec![("denied", denied), ("panics", panics), ("there", after(1))];
    let setup = patient(shapes);
    let (summary, seer) = carried_out(&setup, scripts).await;
    let failed: Vec<String> = summary.failed.iter().map(|run| run.failure.to_string()).collect();
    assert_eq!(failed[0], "the wait for file `denied` failed: it is not yours");
    assert_eq!(failed[1], "the wait for file `panics` failed: the look panicked");
    assert_eq!((seer.looks("denied"), summary.blocked.len(), summary.counts.success), (1, 0, 1));
}

#[tokio::test]
async fn a_reader_is_not_given_up_while_what_it_waits_for_is_being_made() {
    // The reader's time is over when the file comes; by then the run that makes its partition is on its way.
    let shapes =
        vec![with_file(shape("a", 0, &[]), "in/a"), shape("b", 0, &[("a", vec![0])]), shape("c", 0, &[("b", vec![0])])];
    let mut setup = Setup::new(shapes);
    setup.options.wait = Duration::from_millis(50);
    setup.faults.slow_ms = 60;
    let came = Arc::new(Mutex::new(None::<std::time::Instant>));
    let script: Script = Box::new(move |_| {
        let begun = *came.lock().unwrap().get_or_insert_with(std::time::Instant::now);
        // The last look of all.
        Ok(if begun.elapsed() < Duration::from_millis(49) {
            Answer::not_yet("not there")
        } else {
            Answer::yes("there")
        })
    });
    let (summary, _) = carried_out(&setup, vec![("in/a", script)]).await;
    assert!(summary.is_success(), "{summary:?}");
}

#[tokio::test]
async fn cancelling_ends_looks_too() {
    let setup = patient(vec![with_file(shape("a", 0, &[]), "in/a")]);
    let (executor, _) = seeing(&setup, vec![("in/a", after(usize::MAX))]);
    let (stop, cancel) = tokio::sync::watch::channel(false);
    let (progress, _) = tokio::sync::mpsc::unbounded_channel();
    let stopping = async {
        tokio::task::yield_now().await;
        stop.send(true).unwrap();
    };
    let (summary, ()) = tokio::join!(executor.run(setup.requests(), cancel, progress), stopping);
    let summary = summary.unwrap();
    assert!(summary.cancelled);
    assert!(setup.database.states().iter().all(|(_, state, _)| *state == State::Cancelled), "{summary:?}");
}
