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
            TaskShape {
                name: name.parse().unwrap(),
                waits: name.starts_with("wait"),
                after: after.split_whitespace().map(|p| names.iter().position(|n| *n == p).unwrap()).collect(),
            }
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
    let actions = run.apply(&Event::Broke { head: 2, retryable: true }, at(10));
    let [Action::RetryAt { head: 2, at: due }] = actions[..] else { panic!("{actions:?}") };
    assert!(due > at(10) && due <= at(12), "{due}");
    assert_eq!(run.state(), State::Retry);
    assert_eq!(states(&run), "success success retry waiting waiting waiting");
    assert_eq!(run.apply(&Event::RetryDue { head: 2 }, due), [Action::Enqueue { head: 2 }]);
    start(&mut run, 2);
    run.apply(&Event::Moved { task: 2, state: State::Success, at: at(13) }, at(13));
    let actions = run.apply(&Event::Broke { head: 2, retryable: true }, at(14));
    assert_eq!(actions, [Action::Finish(State::Failed)], "the retries are used up");
    assert_eq!(states(&run), "success success success failed upstream_failed upstream_failed");
}

#[test]
fn a_permanent_failure_ends_the_run_at_once() {
    let mut run = run(&["stage:", "check: stage", "publish: check", "latest: publish"], RetryPolicy::default());
    assert_eq!(run.apply(&Event::Begun, at(0)), [Action::Enqueue { head: 0 }]);
    start(&mut run, 0);
    assert_eq!(run.apply(&Event::Broke { head: 0, retryable: false }, at(1)), [Action::Finish(State::Failed)]);
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
    assert_eq!(run.apply(&Event::Broke { head: 1, retryable: true }, at(4)), [], "`c` runs on");
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
