use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_000_000 + seconds, 0).unwrap()
}

/// Makes a run from `name: parent parent` lines; names that begin with `wait` wait.
fn run(plan: &[&str], retry: RetryPolicy) -> Run {
    let names: Vec<&str> = plan.iter().map(|line| line.split(':').next().unwrap()).collect();
    let shapes = plan
        .iter()
        .map(|line| {
            let (name, after) = line.split_once(':').unwrap();
            let after = after.split_whitespace().map(|p| names.iter().position(|n| *n == p).unwrap()).collect();
            TaskShape { waits: name.starts_with("wait"), ..TaskShape::new(name.parse().unwrap(), after) }
        })
        .collect();
    Run::new(shapes, retry, 7)
}

const CHAIN: [&str; 6] =
    ["wait_a:", "wait_b:", "stage: wait_a wait_b", "check: stage", "publish: check", "latest: publish"];

fn states(run: &Run) -> String {
    run.tasks().map(|t| t.state.as_str()).collect::<Vec<_>>().join(" ")
}

fn start(run: &mut Run, head: usize) {
    run.apply(&Event::Queued { head }, at(1));
    run.apply(&Event::Started { head }, at(2));
}

fn broke(head: usize, retryable: bool) -> Event {
    Event::Broke { head, retryable, after: None }
}

#[test]
fn waits_come_first_and_the_chain_is_one_segment() {
    let mut run = run(&CHAIN, RetryPolicy::default());
    assert_eq!(run.state(), State::Waiting);
    assert_eq!(run.apply(&Event::Begun, at(0)), [Action::Await { task: 0 }, Action::Await { task: 1 }]);
    assert_eq!(run.apply(&Event::WaitMet { task: 1 }, at(1)), []);
    assert_eq!(run.apply(&Event::WaitMet { task: 1 }, at(1)), [], "told twice");
    assert_eq!(run.state(), State::Waiting);
    assert_eq!(run.apply(&Event::WaitMet { task: 0 }, at(2)), [Action::Enqueue { head: 2 }]);
    assert_eq!(run.state(), State::Ready);
    assert_eq!(run.segment(2), [2, 3, 4, 5]);
    run.apply(&Event::Queued { head: 2 }, at(3));
    assert_eq!(run.state(), State::Queued);
    run.apply(&Event::Started { head: 2 }, at(4));
    assert_eq!(run.state(), State::Running);
    run.apply(&Event::Moved { task: 2, state: State::Success, at: at(5) }, at(5));
    assert_eq!(states(&run), "success success success waiting waiting waiting");
    assert_eq!(run.state(), State::Running, "between two tasks of a segment");
    assert!(run.ends_with(2));
    assert_eq!(run.apply(&Event::Done { head: 2 }, at(6)), [Action::Finish(State::Success)]);
    assert_eq!(run.apply(&Event::Done { head: 2 }, at(6)), [], "a late reply");
    assert_eq!(run.apply(&Event::Cancelled, at(7)), [], "too late");
    assert_eq!(run.state(), State::Success);
}

#[test]
fn a_transient_failure_starts_the_segment_again_after_a_pause() {
    let policy = RetryPolicy { times: 1, ..RetryPolicy::default() };
    let mut run = run(&CHAIN, policy);
    run.apply(&Event::Begun, at(0));
    run.apply(&Event::WaitMet { task: 0 }, at(0));
    run.apply(&Event::WaitMet { task: 1 }, at(0));
    start(&mut run, 2);
    run.apply(&Event::Moved { task: 2, state: State::Success, at: at(3) }, at(3));
    run.apply(&Event::Moved { task: 3, state: State::Running, at: at(3) }, at(3));
    let actions = run.apply(&broke(2, true), at(10));
    let [Action::RetryAt { head: 2, at: due }] = actions[..] else { panic!("{actions:?}") };
    assert!(due > at(10) && due <= at(12), "{due}");
    assert_eq!(run.state(), State::Retry);
    assert_eq!(states(&run), "success success retry waiting waiting waiting");
    assert_eq!(run.apply(&Event::RetryDue { head: 2 }, due), [Action::Enqueue { head: 2 }]);
    start(&mut run, 2);
    run.apply(&Event::Moved { task: 2, state: State::Success, at: at(13) }, at(13));
    let actions = run.apply(&broke(2, true), at(14));
    assert_eq!(actions, [Action::Finish(State::Failed)], "the retries are used up");
    assert_eq!(states(&run), "success success success failed upstream_failed upstream_failed");
}

#[test]
fn a_permanent_failure_ends_the_run_at_once() {
    let mut run = run(&["stage:", "check: stage", "publish: check", "latest: publish"], RetryPolicy::default());
    assert_eq!(run.apply(&Event::Begun, at(0)), [Action::Enqueue { head: 0 }]);
    start(&mut run, 0);
    assert_eq!(run.apply(&broke(0, false), at(1)), [Action::Finish(State::Failed)]);
    assert_eq!(states(&run), "failed upstream_failed upstream_failed upstream_failed");
}

#[test]
fn a_failed_wait_fails_what_comes_after() {
    let mut run = run(&CHAIN, RetryPolicy::default());
    run.apply(&Event::Begun, at(0));
    assert_eq!(
        run.apply(&Event::WaitFailed { task: 0 }, at(1)),
        [],
        "the other wait is open: rules look at final parents"
    );
    assert_eq!(run.apply(&Event::WaitMet { task: 1 }, at(2)), [Action::Finish(State::Failed)]);
    assert_eq!(states(&run), "failed success upstream_failed upstream_failed upstream_failed upstream_failed");
}

#[test]
fn cancelling_ends_what_is_open_and_keeps_what_is_done() {
    let mut run = run(&CHAIN, RetryPolicy::default());
    run.apply(&Event::Begun, at(0));
    run.apply(&Event::WaitMet { task: 0 }, at(0));
    assert_eq!(run.apply(&Event::Cancelled, at(1)), [Action::Finish(State::Cancelled)]);
    assert_eq!(states(&run), "success cancelled cancelled cancelled cancelled cancelled");
    assert_eq!(run.apply(&Event::WaitMet { task: 1 }, at(2)), []);
}

#[test]
fn a_dag_runs_in_segments() {
    let mut run = run(&["a:", "b: a", "c: a", "d: b c", "e: d"], RetryPolicy { times: 0, ..RetryPolicy::default() });
    run.apply(&Event::Begun, at(0));
    assert_eq!((run.segment(0), run.segment(1), run.segment(3)), (vec![0], vec![1], vec![3, 4]));
    start(&mut run, 0);
    assert!(!run.ends_with(0));
    assert_eq!(run.apply(&Event::Done { head: 0 }, at(3)), [Action::Enqueue { head: 1 }, Action::Enqueue { head: 2 }]);
    start(&mut run, 1);
    start(&mut run, 2);
    assert_eq!(run.apply(&broke(1, true), at(4)), [], "`c` runs on");
    assert_eq!(run.state(), State::Running);
    assert_eq!(run.apply(&Event::Done { head: 2 }, at(5)), [Action::Finish(State::Failed)]);
    assert_eq!(states(&run), "success failed success upstream_failed upstream_failed");
}

#[test]
fn pauses_grow_up_to_the_longest() {
    let policy = RetryPolicy { times: 5, delay: Duration::from_secs(10), factor: 2.0, max: Duration::from_secs(60) };
    for seed in 0..100 {
        for (failures, base) in [(1, 10.0), (2, 20.0), (3, 40.0)] {
            let pause = policy.pause(failures, seed).unwrap().as_secs_f64();
            assert!((base * 0.8..=base * 1.2).contains(&pause), "{failures}: {pause}");
        }
        assert!(policy.pause(5, seed).unwrap().as_secs_f64() <= 60.0);
        assert_eq!(policy.pause(6, seed), None);
    }
    assert_ne!(policy.pause(1, 1), policy.pause(1, 2), "runs that failed together do not come back together");
}

#[test]
fn states_round_trip_as_text() {
    for state in State::ALL {
        assert_eq!(state.as_str().parse(), Ok(state));
    }
    assert!("done".parse::<State>().is_err());
}

/// A task `t` after `parents`, each of which ends as told: `s`uccess, `f`ailed, `a`llowed to fail and failed, `k` skipped.
fn ruled(rule: Rule, parents: &str) -> (Run, usize) {
    let mut shapes = Vec::new();
    // What is skipped is so by a rule that finds no failure before it.
    shapes.push(TaskShape { alone: true, ..TaskShape::new("first".parse().unwrap(), vec![]) });
    for (n, end) in parents.chars().enumerate() {
        let after = if end == 'k' { vec![0] } else { vec![] };
        let rule = if end == 'k' { Rule::OneFailed } else { Rule::AllSuccess };
        let name = format!("p{n}").parse().unwrap();
        shapes.push(TaskShape { alone: true, rule, allow_failure: end == 'a', ..TaskShape::new(name, after) });
    }
    let after = (1..shapes.len()).collect();
    let place = shapes.len();
    shapes.push(TaskShape { alone: true, rule, ..TaskShape::new("t".parse().unwrap(), after) });
    (Run::new(shapes, RetryPolicy { times: 0, ..RetryPolicy::default() }, 7), place)
}

/// Ends the parents in their order, and tells after how many ends the task went, and how it stands at last.
fn follow(rule: Rule, parents: &str) -> String {
    let (mut run, place) = ruled(rule, parents);
    let went = |actions: &[Action]| actions.contains(&Action::Enqueue { head: place });
    if went(&run.apply(&Event::Begun, at(0))) {
        return "at once".to_owned();
    }
    start(&mut run, 0);
    if went(&run.apply(&Event::Done { head: 0 }, at(1))) {
        return "after the skipped".to_owned();
    }
    for (n, end) in parents.chars().enumerate().filter(|(_, end)| *end != 'k') {
        let head = n + 1;
        start(&mut run, head);
        let event = if end == 's' { Event::Done { head } } else { broke(head, false) };
        if went(&run.apply(&event, at(2))) {
            return format!("after {}", n + 1);
        }
    }
    let state = run.tasks().nth(place).unwrap().state;
    format!("{state}, run {}", run.state())
}

#[test]
fn rules_look_at_the_ends_of_what_comes_before() {
    use Rule::*;
    for (rule, parents, expected) in [
        (AllSuccess, "ss", "after 2"),
        (AllSuccess, "fs", "upstream_failed, run failed"),
        (AllSuccess, "sf", "upstream_failed, run failed"),
        (AllSuccess, "as", "after 2"),
        (AllSuccess, "sk", "skipped, run success"),
        (AllSuccess, "fk", "upstream_failed, run failed"),
        (AllDone, "ss", "after 2"),
        (AllDone, "fs", "after 2"),
        (AllDone, "ff", "after 2"),
        (AllDone, "kf", "after 2"),
        (NoneFailed, "ss", "after 2"),
        (NoneFailed, "sk", "after 1"),
        (NoneFailed, "kk", "after the skipped"),
        (NoneFailed, "as", "after 2"),
        (NoneFailed, "fk", "upstream_failed, run failed"),
        (OneFailed, "fs", "after 1"),
        (OneFailed, "sf", "after 2"),
        (OneFailed, "ff", "after 1"),
        (OneFailed, "as", "after 1"),
        (OneFailed, "ss", "skipped, run success"),
        (OneFailed, "sk", "skipped, run success"),
        (Always, "ss", "at once"),
        (Always, "ff", "at once"),
    ] {
        assert_eq!(follow(rule, parents), expected, "{rule:?} after {parents}");
    }
}

#[test]
fn what_follows_a_task_that_did_not_run_is_told_too() {
    let shape = |name: &str, after: &[usize], rule| TaskShape {
        alone: true,
        rule,
        ..TaskShape::new(name.parse().unwrap(), after.to_vec())
    };
    let mut run = Run::new(
        vec![
            shape("load", &[], Rule::AllSuccess),
            shape("use", &[0], Rule::AllSuccess),
            shape("alarm", &[1], Rule::OneFailed),
            shape("tidy", &[0, 1], Rule::AllDone),
        ],
        RetryPolicy { times: 0, ..RetryPolicy::default() },
        1,
    );
    run.apply(&Event::Begun, at(0));
    start(&mut run, 0);
    let actions = run.apply(&broke(0, false), at(1));
    assert_eq!(
        actions,
        [Action::Enqueue { head: 2 }, Action::Enqueue { head: 3 }],
        "`use` did not run, and that counts"
    );
    assert_eq!(run.state(), State::Ready);
    start(&mut run, 2);
    start(&mut run, 3);
    run.apply(&Event::Done { head: 2 }, at(2));
    assert_eq!(run.apply(&Event::Done { head: 3 }, at(3)), [Action::Finish(State::Failed)], "an alarm mends nothing");
    assert_eq!(states(&run), "failed upstream_failed success success");
}

#[test]
fn a_failure_that_is_allowed_fails_nothing() {
    let mut run = Run::new(
        vec![
            TaskShape { alone: true, allow_failure: true, ..TaskShape::new("a".parse().unwrap(), vec![]) },
            TaskShape { alone: true, ..TaskShape::new("b".parse().unwrap(), vec![0]) },
        ],
        RetryPolicy { times: 0, ..RetryPolicy::default() },
        1,
    );
    run.apply(&Event::Begun, at(0));
    start(&mut run, 0);
    assert_eq!(run.apply(&broke(0, true), at(1)), [Action::Enqueue { head: 1 }]);
    start(&mut run, 1);
    assert_eq!(run.apply(&Event::Done { head: 1 }, at(2)), [Action::Finish(State::Success)]);
    assert_eq!(states(&run), "failed success");
}

#[test]
fn tasks_have_retries_of_their_own() {
    let once = RetryPolicy { times: 1, delay: Duration::from_secs(5), factor: 1.0, max: Duration::from_secs(60) };
    let mut run = Run::new(
        vec![
            TaskShape { alone: true, retry: Some(once), ..TaskShape::new("a".parse().unwrap(), vec![]) },
            TaskShape { alone: true, ..TaskShape::new("b".parse().unwrap(), vec![]) },
        ],
        RetryPolicy { times: 0, ..RetryPolicy::default() },
        1,
    );
    run.apply(&Event::Begun, at(0));
    start(&mut run, 0);
    start(&mut run, 1);
    assert_eq!(run.apply(&broke(1, true), at(1)), [], "`b` has none");
    let asked = Event::Broke { head: 0, retryable: true, after: Some(Duration::from_secs(30)) };
    assert_eq!(run.apply(&asked, at(10)), [Action::RetryAt { head: 0, at: at(40) }], "as late as was asked for");
    assert_eq!(run.failures(0), 1);
    run.apply(&Event::RetryDue { head: 0 }, at(40));
    start(&mut run, 0);
    assert_eq!(run.apply(&broke(0, true), at(41)), [Action::Finish(State::Failed)]);
    let mut patient = Run::new(
        vec![TaskShape { retry: Some(once), ..TaskShape::new("a".parse().unwrap(), vec![]) }],
        RetryPolicy::default(),
        1,
    );
    patient.apply(&Event::Begun, at(0));
    start(&mut patient, 0);
    let asked = Event::Broke { head: 0, retryable: true, after: Some(Duration::from_secs(86_400)) };
    assert_eq!(patient.apply(&asked, at(0)), [Action::RetryAt { head: 0, at: at(60) }], "but not for ever");
}

#[test]
fn a_task_runs_once_for_each_item() {
    let mut run = Run::new(
        vec![
            TaskShape { alone: true, ..TaskShape::new("list".parse().unwrap(), vec![]) },
            TaskShape { each: true, ..TaskShape::new("load".parse().unwrap(), vec![0]) },
            TaskShape { alone: true, ..TaskShape::new("end".parse().unwrap(), vec![1]) },
        ],
        RetryPolicy { times: 0, ..RetryPolicy::default() },
        1,
    );
    run.apply(&Event::Begun, at(0));
    start(&mut run, 0);
    assert_eq!(run.apply(&Event::Done { head: 0 }, at(1)), [Action::Expand { task: 1 }]);
    let items = run.apply(&Event::Expanded { task: 1, items: 2 }, at(1));
    assert_eq!(items, [Action::Enqueue { head: 3 }, Action::Enqueue { head: 4 }]);
    assert_eq!(run.apply(&Event::Expanded { task: 1, items: 2 }, at(1)), [], "told twice");
    let names: Vec<_> = run.tasks().map(|t| t.name.to_string()).collect();
    assert_eq!(names, ["list", "load", "end", "load.0", "load.1"]);
    assert_eq!((run.item(4), run.item(1)), (Some((1, 1)), None));
    start(&mut run, 4);
    start(&mut run, 3);
    assert_eq!(run.apply(&broke(4, false), at(2)), [], "the other goes on");
    assert_eq!(run.items_open(1), 1);
    assert_eq!(run.apply(&Event::Done { head: 3 }, at(3)), [Action::Finish(State::Failed)]);
    assert_eq!(states(&run), "success failed upstream_failed success failed");

    let mut empty = Run::new(
        vec![
            TaskShape { each: true, ..TaskShape::new("load".parse().unwrap(), vec![]) },
            TaskShape { each: true, ..TaskShape::new("more".parse().unwrap(), vec![0]) },
        ],
        RetryPolicy::default(),
        1,
    );
    assert_eq!(empty.apply(&Event::Begun, at(0)), [Action::Expand { task: 0 }]);
    assert_eq!(empty.apply(&Event::Expanded { task: 0, items: 0 }, at(0)), [Action::Expand { task: 1 }]);
    assert_eq!(empty.apply(&Event::ExpandFailed { task: 1 }, at(0)), [Action::Finish(State::Failed)]);
    assert_eq!(states(&empty), "success failed");
}

const RULES: [Rule; 5] = [Rule::AllSuccess, Rule::AllDone, Rule::NoneFailed, Rule::OneFailed, Rule::Always];

/// A DAG of up to ten tasks of every kind: for each its rule, its parents as bits, and its flags.
fn dags() -> impl Strategy<Value = Vec<TaskShape>> {
    let task = (0..5usize, any::<u16>(), any::<[bool; 4]>());
    proptest::collection::vec(task, 1..10).prop_map(|tasks| {
        let shape =
            |(place, (rule, parents, [waits, each, alone, allow_failure])): (usize, (usize, u16, [bool; 4]))| {
                let after: Vec<usize> = (0..place).filter(|p| parents >> p & 1 == 1).collect();
                let waits = waits && after.is_empty();
                let rule = if waits || after.is_empty() { Rule::AllSuccess } else { RULES[rule] };
                let name = format!("t{place}").parse().unwrap();
                TaskShape { waits, rule, allow_failure, alone, each: each && !waits, ..TaskShape::new(name, after) }
            };
        tasks.into_iter().enumerate().map(shape).collect()
    })
}

/// Whether a task may run by its rule, said once more in plain words and with what is known at the end.
fn may_run(shapes: &[TaskShape], records: &[TaskRecord], place: usize) -> bool {
    let shape = &shapes[place];
    let failed = |p: &usize| matches!(records[*p].state, State::Failed | State::UpstreamFailed);
    let allowed = |p: usize| shapes[p].allow_failure && records[p].state == State::Failed;
    let stops = |p: &usize| failed(p) && !allowed(*p);
    match shape.rule {
        Rule::Always => true,
        Rule::OneFailed => shape.after.iter().any(failed),
        Rule::AllDone => true,
        Rule::NoneFailed => !shape.after.iter().any(stops),
        Rule::AllSuccess => {
            !shape.after.iter().any(stops) && shape.after.iter().all(|p| records[*p].state != State::Skipped)
        }
    }
}

proptest! {
    /// Every run ends; each task ends once, and only runs when its rule allows; the run fails exactly when it should.
    #[test]
    fn every_run_ends_and_rules_hold(shapes in dags(), choices in proptest::collection::vec(any::<u8>(), 400)) {
        let mut run = Run::new(shapes.clone(), RetryPolicy { times: 1, ..RetryPolicy::default() }, 3);
        let mut pending = run.apply(&Event::Begun, at(0));
        let mut finished = None;
        let mut ended: Vec<Option<State>> = Vec::new();
        for (step, choice) in choices.into_iter().enumerate() {
            prop_assert!(finished.is_none() || pending.is_empty(), "nothing comes after the end");
            if pending.is_empty() {
                break;
            }
            let now = at(step as i64);
            let action = pending.remove(choice as usize % pending.len());
            let lucky = choice % 3 != 0;
            let more = match action {
                Action::Await { task } if lucky => run.apply(&Event::WaitMet { task }, now),
                Action::Await { task } => run.apply(&Event::WaitFailed { task }, now),
                Action::Expand { task } if choice % 7 == 0 => run.apply(&Event::ExpandFailed { task }, now),
                Action::Expand { task } => run.apply(&Event::Expanded { task, items: choice as usize % 4 }, now),
                Action::RetryAt { head, .. } => run.apply(&Event::RetryDue { head }, now),
                Action::Enqueue { head } => {
                    let task = run.tasks().nth(head).unwrap();
                    prop_assert_eq!(task.state, State::Ready);
                    if let Some(shape) = shapes.get(head).filter(|s| matches!(s.rule, Rule::AllSuccess | Rule::AllDone | Rule::NoneFailed)) {
                        let open = shape.after.iter().any(|p| !run.tasks().nth(*p).unwrap().state.is_final());
                        prop_assert!(!open, "task {} runs before its parents are over", head);
                    }
                    run.apply(&Event::Queued { head }, now);
                    run.apply(&Event::Started { head }, now);
                    prop_assert!(run.holds_slot());
                    if lucky { run.apply(&Event::Done { head }, now) } else { run.apply(&broke(head, choice % 2 == 0), now) }
                }
                Action::Finish(state) => {
                    prop_assert_eq!(finished.replace(state), None, "the run ended twice");
                    Vec::new()
                }
            };
            pending.extend(more);
            ended.resize(run.tasks().len(), None);
            for (place, task) in run.tasks().enumerate() {
                match ended[place] {
                    Some(state) => prop_assert_eq!(task.state, state, "task {} ended twice", place),
                    None if task.state.is_final() => ended[place] = Some(task.state),
                    None => {}
                }
            }
        }
        prop_assert!(finished.is_some(), "the run never ended: {}", states(&run));
        let records: Vec<TaskRecord> = run.tasks().cloned().collect();
        prop_assert!(records.iter().all(|t| t.state.is_final()));
        for place in 0..shapes.len() {
            let ran = matches!(records[place].state, State::Success | State::Failed);
            prop_assert_eq!(ran, may_run(&shapes, &records, place), "task {}: {}", place, states(&run));
        }
        let bad = (0..shapes.len()).any(|p| records[p].state == State::Failed && !shapes[p].allow_failure);
        prop_assert_eq!(finished == Some(State::Failed), bad);
    }
}
