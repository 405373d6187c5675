//! The service against a real project, a real lake, and servers that keep what they are told.

use std::sync::atomic::{AtomicI64, Ordering};

use headworks_domain::{ErrorKind, Interval};
use headworks_flow::{
    Failure,
    exec::{Reprocess, Request},
};
use headworks_meta::AlertState;
use headworks_testkit::{HookInbox, MailInbox};
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::*;
use crate::{execute, output::Out};

/// Stands still until it is moved.
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.0.load(Ordering::SeqCst), 0).unwrap()
    }
}

struct World {
    dir: TempDir,
    app: App,
    clock: Arc<TestClock>,
    hook: HookInbox,
}

const ORDERS: &str = "/* job
owner: data
schedule: '0 2 * * *'
start: 2026-03-01
deadline: '07:00'
*/
SELECT count(*) AS orders FROM wait::deliveries WHERE ds = '{{ ds }}'
";

const DELIVERIES: &str = "/* job
schedule: '0 1 * * *'
start: 2026-03-01
alerts: none
*/
SELECT 1 AS id
";

impl World {
    /// A project whose one target is a webhook; the clock shows noon of the 7th of March.
    fn new(more_settings: &str) -> Self {
        let hook = HookInbox::start().unwrap();
        let settings = format!(
            "[project]\nname = \"shop\"\n[alerts]\n{more_settings}\n[alerts.targets.hook]\ntype = \"webhook\"\nurl = \"{}\"\n\
             allow_private = true\n",
            hook.url("/in?key=s3cret")
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("jobs")).unwrap();
        for (path, text) in
            [("headworks.toml", settings.as_str()), ("jobs/orders.sql", ORDERS), ("jobs/deliveries.sql", DELIVERIES)]
        {
            std::fs::write(dir.path().join(path), text).unwrap();
        }
        let clock = Arc::new(TestClock(AtomicI64::new(0)));
        let mut app = Self::open(dir.path());
        app.clock = clock.clone();
        let world = Self { dir, app, clock, hook };
        world.set("2026-03-07T12:00:00Z");
        world
    }

    fn open(dir: &Path) -> App {
        App::new(Out::new(false, true, true, true), Environment::default(), Some(dir.to_path_buf()), Vec::new())
    }

    fn set(&self, time: &str) {
        self.clock.0.store(time.parse::<DateTime<Utc>>().unwrap().timestamp(), Ordering::SeqCst);
    }

    fn forward(&self, secs: i64) {
        self.clock.0.fetch_add(secs, Ordering::SeqCst);
    }

    /// What the webhook was told so far.
    fn told(&self) -> Vec<Value> {
        self.hook.hooks().iter().map(|hook| serde_json::from_str(&hook.body).unwrap()).collect()
    }

    /// Kinds and jobs of all events so far, in order.
    fn headlines(&self) -> Vec<String> {
        let told = self.told();
        let events = told.iter().flat_map(|message| message["events"].as_array().unwrap());
        events
            .map(|e| {
                format!(
                    "{} {} {}",
                    e["kind"].as_str().unwrap(),
                    e["job"].as_str().unwrap(),
                    e["partition"].as_str().unwrap()
                )
            })
            .collect()
    }

    fn interval(&self, job: &str, ds: &str) -> Interval {
        let project = self.app.project_as_it_is().unwrap();
        project.job(job).unwrap().interval_of(ds.parse().unwrap(), None).unwrap()
    }

    fn failed(&self, job: &str, ds: &str) -> RunEnd {
        RunEnd {
            job: job.parse().unwrap(),
            interval: self.interval(job, ds),
            ds: ds.parse().unwrap(),
            state: State::Failed,
            failure: Some(Failure::new(ErrorKind::Invalid, "CHECK_FAILED", "check `not_empty` failed")),
            run_id: "hw1-1".parse().unwrap(),
            attempt: 1,
            finished_at: self.clock.now(),
        }
    }

    /// Runs a job, as `headworks run` does.
    async fn run(&self, job: &str, ds: &str) {
        let request = Request { job: job.parse().unwrap(), interval: self.interval(job, ds) };
        let wanted = execute::Wanted {
            requests: vec![request],
            reprocess: Reprocess::None,
            params: Map::new(),
            as_of_now: false,
            wait: None,
            tasks_max: None,
        };
        let summary = execute::carry_out(&self.app, wanted).await.unwrap();
        assert!(summary.is_success(), "{summary:?}");
    }
}

async fn opened(app: &App) -> anyhow::Result<Service> {
    Service::open(app, LiveProject::new(app.project_as_it_is()?.clone())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_become_one_message_with_an_id() {
    let world = World::new("");
    let mut service = opened(&world.app).await.unwrap();
    let handle = service.handle();
    handle.note(world.failed("orders", "2026-03-05")).await;
    world.forward(10);
    handle.note(world.failed("orders", "2026-03-06")).await;
    handle.note(world.failed("orders", "2026-03-06")).await;
    handle.note(world.failed("deliveries", "2026-03-06")).await;
    let cancelled = RunEnd { state: State::Cancelled, ..world.failed("orders", "2026-03-04") };
    handle.note(cancelled).await;
    assert_eq!(service.pass().await, Duration::from_secs(20), "until the first is half a minute old");
    assert!(world.told().is_empty());
    world.forward(20);
    service.pass().await;
    assert_eq!(world.headlines(), ["failure orders ds=2026-03-05", "failure orders ds=2026-03-06"]);
    let hook = &world.hook.hooks()[0];
    let id = world.told()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(hook.header("idempotency-key"), Some(id.as_str()));
    assert_eq!(hook.line, "POST /in?key=s3cret");
    world.forward(3600);
    service.pass().await;
    assert_eq!(world.told().len(), 1, "told once");
    world.app.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_away_is_asked_again_with_the_same_message() {
    let world = World::new("");
    let mut service = opened(&world.app).await.unwrap();
    world.hook.answer("503 Away\r\nRetry-After: 7");
    world.hook.answer("500 Broken");
    world.hook.answer("302 Found\r\nLocation: http://127.0.0.1:1/");
    service.handle().note(world.failed("orders", "2026-03-06")).await;
    world.forward(30);
    assert_eq!(service.pass().await, Duration::from_secs(7), "when the server said");
    let error = |rows: Vec<headworks_meta::AlertRow>| rows[0].error.clone().unwrap_or_default();
    let outbox = outbox(&world.app).await.unwrap();
    assert_eq!(
        error(outbox.list(None, 9).await.unwrap()),
        "`127.0.0.1` answered 503 Service Unavailable: said by the inbox"
    );
    world.forward(7);
    assert_eq!(service.pass().await, Duration::from_secs(20), "twice the first pause");
    world.forward(20);
    assert_eq!(service.pass().await, LOOK_EVERY, "the next try is in 40 seconds");
    assert_eq!(
        error(outbox.list(None, 9).await.unwrap()),
        "`127.0.0.1` answered 302 Found, and redirects are not followed"
    );
    world.forward(40);
    service.pass().await;
    let told = world.told();
    assert_eq!(told.len(), 4);
    assert!(told.iter().all(|message| *message == told[0]), "{told:?}");
    let row = outbox.list(None, 9).await.unwrap().remove(0);
    assert_eq!((row.state, row.attempts, row.error), (AlertState::Sent, 4, None));
    world.app.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_end_after_a_day() {
    let world = World::new("on = [\"failure\"]\n");
    let mut service = opened(&world.app).await.unwrap();
    service.handle().note(world.failed("orders", "2026-03-06")).await;
    world.forward(30);
    let outbox = outbox(&world.app).await.unwrap();
    let mut tries = 0;
    while outbox.list(Some(AlertState::Pending), 9).await.unwrap().len() == 1 {
        world.hook.answer("500 Broken");
        service.pass().await;
        world.forward(600);
        tries += 1;
        assert!(tries < 200, "it never ends");
    }
    // About every ten minutes of a day.
    assert!((140..150).contains(&tries), "{tries} tries");
    let row = outbox.list(Some(AlertState::GivenUp), 9).await.unwrap().remove(0);
    assert!(!row.error.as_deref().unwrap_or_default().contains("s3cret"), "{row:?}");
    world.app.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_deadline_names_its_chain_and_then_how_late_it_was() {
    let world = World::new("group_for = \"0s\"\n");
    let mut service = opened(&world.app).await.unwrap();
    // Watched from now on: this morning's deadline is nobody's fault.
    service.pass().await;
    world.set("2026-03-08T06:59:59Z");
    assert_eq!(service.pass().await, Duration::from_secs(1), "it wakes for the deadline");
    assert!(world.told().is_empty());
    world.set("2026-03-08T07:00:00Z");
    service.pass().await;
    assert_eq!(world.headlines(), ["deadline orders ds=2026-03-07"]);
    let event = &world.told()[0]["events"][0];
    assert_eq!(
        event["blocked_by"],
        serde_json::json!([
            "orders has no run for it yet",
            "orders waits for deliveries ds=2026-03-07",
            "deliveries has no run for it yet",
        ])
    );
    assert_eq!((&event["due"], &event["owner"]), (&"2026-03-08T07:00:00Z".into(), &"data".into()));
    world.forward(60);
    service.pass().await;
    // Another process that watches too, or this one after a new start.
    opened(&world.app).await.unwrap().pass().await;
    assert_eq!(world.told().len(), 1, "told once");

    world.set("2026-03-08T09:30:00Z");
    world.run("deliveries", "2026-03-07").await;
    world.run("orders", "2026-03-07").await;
    service.pass().await;
    assert_eq!(world.headlines()[1..], ["late orders ds=2026-03-07"]);
    // A later reprocess is no second late publish, and the next day's in time is none at all.
    world.set("2026-03-09T03:00:00Z");
    world.run("deliveries", "2026-03-08").await;
    world.run("orders", "2026-03-08").await;
    world.set("2026-03-09T08:00:00Z");
    service.pass().await;
    assert_eq!(world.told().len(), 2);
    world.app.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_nobody_watched_is_told_as_it_was() {
    let world = World::new("group_for = \"0s\"\n");
    opened(&world.app).await.unwrap().pass().await;
    // The 6th was published in time, the 7th late, the 8th not at all; nobody watched.
    world.set("2026-03-08T08:00:00Z");
    world.run("deliveries", "2026-03-07").await;
    world.run("orders", "2026-03-07").await;
    world.set("2026-03-09T06:00:00Z");
    opened(&world.app).await.unwrap().pass().await;
    assert_eq!(world.headlines(), ["late orders ds=2026-03-07"]);
    world.set("2026-03-09T09:00:00Z");
    opened(&world.app).await.unwrap().pass().await;
    assert_eq!(world.headlines()[1..], ["deadline orders ds=2026-03-08"]);
    world.app.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_that_failed_recovers_whoever_runs_it() {
    let world = World::new("group_for = \"0s\"\non = [\"failure\", \"recovery\"]\n");
    let mut service = opened(&world.app).await.unwrap();
    service.handle().note(world.failed("orders", "2026-03-06")).await;
    service.pass().await;
    world.forward(60);
    world.run("deliveries", "2026-03-05").await;
    world.run("orders", "2026-03-05").await;
    service.pass().await;
    assert_eq!(world.headlines(), ["failure orders ds=2026-03-06"], "another day is no recovery");
    world.run("deliveries", "2026-03-06").await;
    world.run("orders", "2026-03-06").await;
    service.pass().await;
    service.pass().await;
    assert_eq!(world.headlines()[1..], ["recovery orders ds=2026-03-06"]);
    world.app.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_sends_at_once_and_ends_when_told() {
    let world = World::new("group_for = \"0s\"\n");
    let live = LiveProject::new(world.app.project_as_it_is().unwrap().clone());
    let service = Service::open(&world.app, live.clone()).await.unwrap();
    let handle = service.handle();
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(service.run(stopped));
    handle.note(world.failed("orders", "2026-03-06")).await;
    let world = tokio::task::spawn_blocking(move || world.hook.wait_for(1).map(|_| world)).await.unwrap().unwrap();
    // A job that is new to a running process has its own targets.
    std::fs::write(world.dir.path().join("jobs/orders.sql"), ORDERS.replace("owner: data", "alerts: none")).unwrap();
    let again = World::open(world.dir.path());
    live.replace(again.project_as_it_is().unwrap().clone());
    handle.note(world.failed("orders", "2026-03-05")).await;
    stop.send_replace(true);
    running.await.unwrap();
    assert_eq!(world.told().len(), 1);
    world.app.close().await;
}

fn mail(server: &MailInbox) -> headworks_flow::Mail {
    headworks_flow::Mail {
        host: "127.0.0.1".to_owned(),
        port: server.port(),
        security: headworks_flow::MailSecurity::None,
        login: None,
        from: "Headworks <headworks@example.com>".to_owned(),
        to: vec!["data@example.com".to_owned(), "Ünï <u@example.com>".to_owned()],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_arrives_with_its_id() {
    let world = World::new("");
    let server = MailInbox::start().unwrap();
    let event = Event::failure(&world.failed("orders", "2026-03-06"), None).unwrap();
    let message =
        Message { id: "0123456789abcdef".to_owned(), project: "Läden\r\nBcc: x@y".to_owned(), events: vec![event] };
    let target = Target::Email(mail(&server));
    send(&target, &message, world.clock.now()).await.unwrap();
    let letter = server.letters().remove(0);
    let receivers: Vec<&String> = letter.commands.iter().filter(|c| c.starts_with("RCPT")).collect();
    assert_eq!(receivers.len(), 2, "{letter:?}");
    assert!(letter.text.contains("Message-ID: <0123456789abcdef@headworks.invalid>"), "{}", letter.text);
    assert!(letter.text.contains("Date: Sat, 07 Mar 2026 12:00:00 +0000"), "{}", letter.text);
    assert!(!letter.text.lines().any(|line| line.starts_with("Bcc:")), "{}", letter.text);
    assert!(letter.text.contains("CHECK_FAILED"), "{}", letter.text);

    server.answer("451 greylisted, come back");
    let refused = send(&target, &message, world.clock.now()).await.unwrap_err();
    assert!(refused.reason.contains("127.0.0.1") && refused.reason.contains("greylisted"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_in_the_clear_when_tls_was_asked_for() {
    let world = World::new("");
    let server = MailInbox::start().unwrap();
    let message = Message { id: "x".to_owned(), project: "shop".to_owned(), events: Vec::new() };
    for security in [headworks_flow::MailSecurity::Starttls, headworks_flow::MailSecurity::Tls] {
        let login = Some(("me".to_owned(), headworks_domain::Secret::new("pa55")));
        let target = Target::Email(headworks_flow::Mail { security, login, ..mail(&server) });
        let refused = send(&target, &message, world.clock.now()).await.unwrap_err();
        assert!(!refused.reason.contains("pa55"), "{refused:?}");
    }
    assert!(server.letters().is_empty());
    let login = Some(("me".to_owned(), headworks_domain::Secret::new("pa55")));
    send(&Target::Email(headworks_flow::Mail { login, ..mail(&server) }), &message, world.clock.now()).await.unwrap();
    assert!(server.letters()[0].commands.iter().any(|c| c.starts_with("AUTH PLAIN")), "{:?}", server.letters());
}
