use headworks_domain::{ErrorKind, Interval};
use headworks_flow::{Failure, exec::Trigger};
use insta::assert_snapshot;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    format!("2026-01-{}:00Z", text.replace(' ', "T")).parse().unwrap()
}

/// Noon of the second of January; the run of the first was due at two.
fn facts() -> Facts {
    Facts {
        now: at("02 12:00"),
        due: Due::At(at("02 02:00")),
        paused_at: None,
        cursor: None,
        schedulers: 1,
        stores: true,
        published: None,
        asked_at: None,
        backfill: None,
        run: None,
        task: None,
        retry_at: None,
        wait_until: None,
        missing: Vec::new(),
        outside: Vec::new(),
        active: 0,
        active_max: None,
        placement: Placement::default(),
        workers: vec![Takes::default()],
        full_pool: None,
    }
}

fn far() -> Placement {
    Placement { zone: Some("eu".to_owned()), pools: ["etl".to_owned()].into() }
}

fn pool() -> PoolRow {
    let holder = |n: usize| Holder {
        process: format!("far:{n}"),
        run_id: format!("k3v9p2m1xa-{n}").parse().unwrap(),
        job: "load".parse().unwrap(),
        ds: "2026-01-01".parse().unwrap(),
        task: "stage".to_owned(),
        slots: n,
        since: at("02 11:00"),
    };
    PoolRow { name: "etl".to_owned(), slots: 3, holders: vec![holder(1), holder(2)] }
}

fn run(state: State) -> RunRow {
    let failure = Failure::new(ErrorKind::Invalid, "SQL", "column `x` is not there").with_hint("did you mean `y`?");
    RunRow {
        id: "k3v9p2m1xa-7".parse().unwrap(),
        job: "total".parse().unwrap(),
        job_version: "v1".to_owned(),
        table: Some("total".parse().unwrap()),
        interval: Interval::new(at("01 00:00"), at("02 00:00")).unwrap(),
        ds: "2026-01-01".parse().unwrap(),
        trigger: Trigger::Schedule,
        params: serde_json::Map::new(),
        state,
        attempt: 2,
        fence: 1,
        owner: "host:12".to_owned(),
        owner_alive: true,
        lease_until: None,
        created_at: at("02 02:00"),
        started_at: Some(at("02 11:00")),
        finished_at: state.is_final().then(|| at("02 11:30")),
        rows: 0,
        bytes: 0,
        failure: matches!(state, State::Failed | State::Retry).then_some(failure),
    }
}

fn sight(found: Result<Answer, Failure>) -> Sight {
    Sight { what: "file `in/2026-01-01.csv`".to_owned(), found, every: Span::from_secs(90) }
}

fn check(facts: &Facts, expected: &str) {
    assert_eq!(conclude(facts).code(), expected, "{facts:?}");
}

#[test]
fn what_was_never_begun_has_the_first_reason_that_keeps_it() {
    let new = facts();
    check(&new, "starts_soon");
    check(&Facts { due: Due::ByHand, ..new.clone() }, "by_hand");
    check(&Facts { due: Due::NoTick, ..new.clone() }, "no_tick");
    check(&Facts { due: Due::At(at("03 02:00")), ..new.clone() }, "not_due");
    check(&Facts { due: Due::At(at("03 02:00")), schedulers: 0, ..new.clone() }, "not_due");
    check(&Facts { schedulers: 0, ..new.clone() }, "nobody_serves");
    check(&Facts { cursor: Some(at("02 02:00")), ..new.clone() }, "missed");
    check(&Facts { cursor: Some(at("01 02:00")), ..new.clone() }, "starts_soon");
    let paused = Facts { paused_at: Some(at("01 00:00")), ..new.clone() };
    check(&paused, "paused");
    check(&Facts { due: Due::At(at("03 02:00")), ..paused.clone() }, "paused");
    check(&Facts { due: Due::ByHand, ..paused }, "by_hand");
    check(&Facts { asked_at: Some(at("02 11:59")), ..new.clone() }, "asked");
    check(&Facts { asked_at: Some(at("02 11:59")), schedulers: 0, ..new.clone() }, "nobody_serves");
    let piece = Facts { asked_at: Some(at("02 11:59")), backfill: Some((3, false)), ..new };
    check(&piece, "backfill");
    check(&Facts { schedulers: 0, ..piece.clone() }, "nobody_serves");
    check(&Facts { schedulers: 0, backfill: Some((3, true)), ..piece }, "backfill");
}

#[test]
fn a_live_run_says_what_it_does() {
    let live = |state| Facts { run: Some(run(state)), ..facts() };
    check(&live(State::Running), "running");
    check(&live(State::Retry), "retry");
    check(&live(State::Waiting), "slots");
    check(&Facts { missing: vec![("numbers".to_owned(), 1)], ..live(State::Waiting) }, "waits");
    let outside =
        |is_yes| Facts { outside: vec![sight(Ok(Answer { is_yes, said: String::new() }))], ..live(State::Waiting) };
    check(&outside(false), "waits");
    check(&outside(true), "found_soon");
    check(&Facts { missing: vec![("numbers".to_owned(), 1)], ..outside(true) }, "waits");
    check(&Facts { active: 1, active_max: Some(1), ..outside(true) }, "job_limit");
    check(&Facts { active: 1, active_max: Some(1), ..live(State::Waiting) }, "job_limit");
    check(&Facts { active: 1, active_max: Some(2), ..live(State::Waiting) }, "slots");
    check(&Facts { full_pool: Some(pool()), ..live(State::Waiting) }, "pool");
    // A repetition says more than what was published before it.
    check(&Facts { published: Some((at("02 03:00"), None)), ..live(State::Running) }, "running");
    let mut gone = live(State::Running);
    gone.run.as_mut().unwrap().owner_alive = false;
    check(&gone, "abandoned");
    gone.run.as_mut().unwrap().owner = String::new();
    check(&gone, "slots");
    check(&Facts { placement: far(), ..gone.clone() }, "no_worker");
    check(&Facts { workers: Vec::new(), ..gone.clone() }, "no_worker");
    let there = Takes { zone: Some("eu".to_owned()), ..Takes::default() };
    check(&Facts { placement: far(), workers: vec![there], ..gone }, "slots");
}

#[test]
fn an_ended_run_says_how() {
    let ended = |state| Facts { run: Some(run(state)), ..facts() };
    check(&ended(State::Failed), "failed");
    check(&ended(State::Cancelled), "cancelled");
    check(&ended(State::Success), "done");
    let of_tasks = Facts { stores: false, ..ended(State::Success) };
    assert!(matches!(conclude(&of_tasks), Reason::Done { gone: false, .. }));
    let published = |text: &str| Some((at(text), None));
    check(&Facts { published: published("02 11:30"), ..ended(State::Success) }, "published");
    check(&Facts { published: published("02 11:00"), ..ended(State::Failed) }, "failed");
    check(&Facts { published: published("02 11:45"), ..ended(State::Failed) }, "published");
    check(&Facts { published: published("02 11:30"), ..facts() }, "published");
    check(
        &Facts { asked_at: Some(at("02 11:59")), published: published("02 11:30"), ..ended(State::Success) },
        "asked",
    );
}

#[test]
fn chains_read_from_the_question_to_what_to_do() {
    let node = |name: &str, facts: &Facts, because| Node {
        name: name.to_owned(),
        ds: "2026-01-01".to_owned(),
        hour: None,
        reason: conclude(facts),
        because,
    };
    let now = facts().now;
    let failed = node("numbers", &Facts { run: Some(run(State::Failed)), ..facts() }, Vec::new());
    let until = Some(at("03 02:00"));
    let waiting = Facts { run: Some(run(State::Waiting)), wait_until: until, ..facts() };
    let waits = |table: &str, n| Facts { missing: vec![(table.to_owned(), n)], ..waiting.clone() };
    let chain = node("report", &waits("total", 1), vec![node("total", &waits("numbers", 3), vec![failed])]);
    let missing = Node {
        name: "rates".to_owned(),
        ds: "ds=2026-01-01".to_owned(),
        hour: None,
        reason: Reason::NoMaker,
        because: Vec::new(),
    };
    let mut texts = vec![chain.text(now), node("total", &waits("rates", 1), vec![missing]).text(now)];
    let denied = Failure::new(ErrorKind::Denied, "X", "cannot read `in`").with_hint("let this user read the file");
    for found in
        [Ok(Answer::not_yet("there is no such file")), Err(denied), Ok(Answer::yes("`in/2026-01-01.csv` is there"))]
    {
        let outside = vec![sight(found)];
        let because = outside.iter().map(Sight::node).collect();
        texts.push(node("total", &Facts { outside, ..waits("rates", 2) }, because).text(now));
    }
    let found = vec![sight(Ok(Answer::yes("`in/2026-01-01.csv` is there")))];
    texts.push(node("total", &Facts { outside: found, ..waiting.clone() }, Vec::new()).text(now));
    let live = |state| Facts { run: Some(run(state)), task: Some("stage".to_owned()), ..facts() };
    let mut abandoned = live(State::Running);
    abandoned.run.as_mut().unwrap().owner_alive = false;
    let mut released = Facts { placement: far(), ..live(State::Ready) };
    released.run.as_mut().unwrap().owner = String::new();
    for facts in [
        Facts { published: Some((at("02 11:30"), Some("k3v9p2m1xa-7".to_owned()))), ..facts() },
        live(State::Success),
        Facts { due: Due::ByHand, ..facts() },
        Facts { due: Due::NoTick, ..facts() },
        Facts { due: Due::At(at("03 02:00")), ..facts() },
        Facts { paused_at: Some(at("01 00:00")), ..facts() },
        Facts { schedulers: 0, ..facts() },
        Facts { asked_at: Some(at("02 11:59")), ..facts() },
        Facts { asked_at: Some(at("02 11:59")), backfill: Some((3, true)), ..facts() },
        Facts { asked_at: Some(at("02 11:59")), backfill: Some((3, false)), ..facts() },
        Facts {
            asked_at: Some(at("02 11:59")),
            backfill: Some((3, false)),
            missing: vec![("numbers".to_owned(), 2)],
            ..facts()
        },
        Facts { cursor: Some(at("02 02:00")), ..facts() },
        facts(),
        abandoned,
        live(State::Running),
        Facts { retry_at: Some(at("02 12:05")), ..live(State::Retry) },
        Facts { active: 1, active_max: Some(1), ..live(State::Waiting) },
        Facts { full_pool: Some(pool()), ..live(State::Waiting) },
        released,
        live(State::Waiting),
        live(State::Cancelled),
    ] {
        texts.push(node("total", &facts, Vec::new()).text(now));
    }
    assert_snapshot!(texts.join("\n"));
    assert_snapshot!("json", serde_json::to_string_pretty(&chain.json(now)).unwrap());
}
