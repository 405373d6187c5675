use headworks_domain::ErrorKind;

use super::*;

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn job() -> Job {
    let text = "/* job\nschedule: '0 2 * * *'\ntimezone: America/New_York\nowner: data\ndeadline: '07:00'\n*/\nSELECT 1 AS x\n";
    crate::jobfile::read("jobs/orders.sql".to_owned(), text.to_owned(), "orders", Tz::UTC).job.unwrap()
}

fn day(job: &Job, ds: &str) -> Interval {
    job.interval_of(ds.parse().unwrap(), None).unwrap()
}

fn ended(job: &Job, ds: &str, state: State, message: &str) -> RunEnd {
    let failure = Failure::new(ErrorKind::Invalid, "CHECK_FAILED", message).with_hint("look at the rows");
    RunEnd {
        job: job.name.clone(),
        interval: day(job, ds),
        ds: ds.parse().unwrap(),
        state,
        failure: Some(failure),
        run_id: "hw1-7".parse().unwrap(),
        attempt: 3,
        finished_at: utc("2026-03-08T07:30:00Z"),
    }
}

fn all_kinds() -> Vec<Event> {
    let job = job();
    let failed =
        ended(&job, "2026-03-07", State::Failed, "check `not_empty` failed:\n<!channel> 0 rows & nothing else");
    let deadline = Deadline { interval: day(&job, "2026-03-07"), due: utc("2026-03-08T11:00:00Z") };
    let chain = vec!["waits for deliveries ds=2026-03-07".to_owned(), "its run hw1-3 failed: no such table".to_owned()];
    vec![
        Event::failure(&failed, Some(&job)).unwrap(),
        Event::missed(&job, &deadline, chain),
        Event::late(&job, &deadline, utc("2026-03-08T12:10:00Z")),
        Event::recovery(&job, day(&job, "2026-03-07"), "hw1-9".parse().unwrap(), utc("2026-03-08T12:10:00Z")),
    ]
}

fn message(events: Vec<Event>) -> Message {
    let keys: Vec<String> = events.iter().map(Event::key).collect();
    Message { id: message_id("team", keys.iter().map(String::as_str)), project: "shop".to_owned(), events }
}

#[test]
fn messages_read_well() {
    let message = message(all_kinds());
    insta::assert_snapshot!(format!("Subject: {}\n\n{}", message.subject(), message.text()));
    insta::assert_snapshot!("slack", serde_json::to_string_pretty(&message.slack()).unwrap());
    insta::assert_snapshot!("json", serde_json::to_string_pretty(&message.json()).unwrap());
}

#[test]
fn a_test_says_that_it_is_one() {
    let message = message(Vec::new());
    assert_eq!(message.subject(), "[shop] test alert");
    assert!(message.text().starts_with("This is a test of Headworks' alerts."));
    assert_eq!(message.json()["test"], true);
}

#[test]
fn keys_tell_events_apart() {
    let keys: Vec<String> = all_kinds().iter().map(Event::key).collect();
    assert_eq!(
        keys,
        [
            "failure:orders:1772859600-1772946000:hw1-7:3",
            "deadline:orders:1772859600-1772946000",
            "late:orders:1772859600-1772946000",
            "recovery:orders:1772859600-1772946000:hw1-9",
        ]
    );
    let job = job();
    let again = RunEnd { attempt: 4, ..ended(&job, "2026-03-07", State::Failed, "x") };
    assert_ne!(Event::failure(&again, Some(&job)).unwrap().key(), keys[0], "another attempt is another failure");
    assert_eq!(message_id("team", ["a", "b"]), message_id("team", ["a", "b"]));
    assert_ne!(message_id("team", ["a", "b"]), message_id("team", ["ab"]));
    assert_ne!(message_id("team", ["a"]), message_id("mail", ["a"]));
}

#[test]
fn only_failed_runs_fail() {
    let job = job();
    for state in State::ALL {
        let told = Event::failure(&ended(&job, "2026-03-07", state, "x"), Some(&job)).is_some();
        assert_eq!(told, matches!(state, State::Failed | State::UpstreamFailed), "{state}");
    }
    // A job whose file is gone still has a name and a day.
    let event = Event::failure(&ended(&job, "2026-03-07", State::Failed, "x"), None).unwrap();
    assert_eq!((event.partition.to_string().as_str(), event.owner), ("ds=2026-03-07", None));
}

#[test]
fn long_messages_have_bounds() {
    let job = job();
    let long = "x<&>".repeat(100_000);
    let events: Vec<Event> = (0..300)
        .map(|n| {
            let end = RunEnd { attempt: n, ..ended(&job, "2026-03-07", State::Failed, &long) };
            Event::failure(&end, Some(&job)).unwrap()
        })
        .collect();
    let message = message(events);
    assert_eq!(message.subject(), "[shop] 300 failures");
    assert!(message.text().len() < 40_000 && message.text().contains("and 280 more: headworks alerts list"));
    let slack = message.slack();
    let blocks = slack["blocks"].as_array().unwrap();
    assert!(blocks.len() <= 50, "Slack takes no more");
    for block in blocks {
        assert!(block["text"]["text"].as_str().is_none_or(|text| text.chars().count() <= 3_000), "{block}");
    }
}

#[test]
fn an_event_survives_the_database() {
    for event in all_kinds() {
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
