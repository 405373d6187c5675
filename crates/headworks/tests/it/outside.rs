//! Runs that wait for files, objects, SQL and HTTP, with real ones.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use headworks_testkit::{Moto, TempPostgres};
use insta::assert_snapshot;
use serde_json::Value;

use crate::project::{Outcome, Project, outcome};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again until the answer is right.
fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ask() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A project with one job that waits for this.
fn waiting(wait: &str) -> Project {
    Project::empty().file("jobs/j.sql", &job(wait, ""))
}

fn job(wait: &str, more: &str) -> String {
    format!("/* job\nowner: tests\nstart: 2026-01-01\nwait: [{wait}]\n{more}*/\nSELECT 1 AS n\n")
}

fn run(project: &Project, more: &[&str]) -> Outcome {
    project.run(&[&["run", "j", "--ds", "2026-01-01", "-q"], more].concat())
}

fn start(project: &Project, more: &[&str]) -> Child {
    project.command(&[&["run", "j", "--ds", "2026-01-01", "-q"], more].concat()).spawn().unwrap()
}

fn state(project: &Project) -> Option<String> {
    let runs = project.json(&["runs", "list"]);
    runs["runs"].as_array()?.first()?["state"].as_str().map(str::to_owned)
}

/// `headworks up` or a part of it; killed when the test is done with it.
struct Serving(Child);

impl Serving {
    fn start(project: &Project, role: &str) -> Self {
        let serving = project.command(&[role, "--listen", "127.0.0.1:0"]).stderr(Stdio::null()).spawn();
        Self(serving.unwrap())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that answers every call as it was told last, and counts them.
struct Server {
    url: String,
    answer: Arc<Mutex<String>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(status_and_headers: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (answer, calls) = (Arc::new(Mutex::new(status_and_headers.to_owned())), Arc::default());
        let server = Self { url, answer: Arc::clone(&answer), calls: Arc::clone(&calls) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                Self::serve(stream.unwrap(), &answer, &calls);
            }
        });
        server
    }

    fn serve(mut stream: TcpStream, answer: &Mutex<String>, calls: &Mutex<Vec<String>>) {
        let mut request = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while reader.read_line(&mut request).is_ok_and(|n| n > 2) {}
        if request.starts_with("GET /moved") {
            let _ = stream
                .write_all(b"HTTP/1.1 302 Found\r\nconnection: close\r\ncontent-length: 0\r\nlocation: /ready\r\n\r\n");
            return;
        }
        calls.lock().unwrap().push(request);
        let answer = answer.lock().unwrap().clone();
        let _ =
            stream.write_all(format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").as_bytes());
        let _ = stream.read(&mut [0]);
    }

    fn answers(&self, status_and_headers: &str) {
        *self.answer.lock().unwrap() = status_and_headers.to_owned();
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

#[test]
fn a_run_waits_for_a_file_and_says_what_is_missing() {
    let project = waiting("{file: 'in/{{ ds }}/*.csv', every: 1s}");
    assert_snapshot!(project.seen(&["run", "j", "--ds", "2026-01-01", "-q"]));
    let why = project.ok(&["why", "j", "--ds", "2026-01-01"]);
    assert_snapshot!(why.lines().skip(1).collect::<Vec<_>>().join("\n"));
    let waits = start(&project, &["--wait", "1m"]);
    until("the run", || state(&project).is_some_and(|state| state == "waiting"));
    let why = project.json(&["why", "j", "--ds", "2026-01-01"]);
    assert_eq!((&why["reason"], &why["because"][0]["reason"]), (&"waits".into(), &"not_there".into()), "{why}");
    assert_eq!(why["because"][0]["job"], "file `in/2026-01-01/*.csv`", "{why}");
    project.write("in/2026-01-01/Ünï.csv", "");
    let outcome = outcome(waits);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    // The same command does nothing, whatever became of the file.
    fs::remove_dir_all(project.path().join("in")).unwrap();
    assert_eq!(run(&project, &[]).code, 0);
    let run = &project.json(&["runs", "list"])["runs"][0];
    let shown = project.json(&["runs", "show", run["run_id"].as_str().unwrap()]);
    assert_eq!((&shown["tasks"][0]["task"], &shown["tasks"][0]["state"]), (&"wait_file".into(), &"success".into()));
}

#[test]
fn up_waits_through_a_kill_and_starts_what_is_there() {
    let days = "schedule: '@daily'\ncatchup: all\nend: 2026-01-03\n";
    let project = Project::empty()
        .file("jobs/j.sql", &job("{file: 'in/{{ ds }}', every: 1s}", days))
        .file("jobs/t.yml", "schedule: '@daily'\ncatchup: all\nstart: 2026-01-02\nend: 2026-01-02\nwait: [{file: 'in/{{ ds }}', every: 1s}, j]\ntasks: {say: {type: shell, command: 'echo it is there'}}\n");
    let up = Serving::start(&project, "up");
    let in_state = |job: &str, state: &str| {
        let runs = project.json(&["runs", "list", "--job", job, "--state", state]);
        runs["runs"].as_array().unwrap().len()
    };
    until("the waiting runs", || in_state("j", "waiting") == 3);
    project.write("in/2026-01-01", "");
    until("the first day", || in_state("j", "success") == 1);
    drop(up);
    project.write("in/2026-01-02", "");
    let _up = Serving::start(&project, "up");
    until("the second day, and who reads it", || in_state("j", "success") == 2 && in_state("t", "success") == 1);
    assert_eq!(in_state("j", "waiting"), 1);
}

#[test]
fn a_scheduler_over_postgres_waits_and_a_worker_works() {
    let days = "schedule: '@daily'\ncatchup: all\nend: 2026-01-02\n";
    let project = Project::empty().file("jobs/j.sql", &job("{file: 'in/{{ ds }}', every: 1s}", days));
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    project.write("headworks.toml", &format!("[project]\nname = \"test\"\n\n[metadata]\nurl = \"{url}\"\n"));
    let _scheduler = Serving::start(&project, "scheduler");
    let in_state = |state: &str| project.json(&["runs", "list", "--state", state])["runs"].as_array().unwrap().len();
    until("the waiting runs", || in_state("waiting") == 2);
    let _worker = Serving::start(&project, "worker");
    project.write("in/2026-01-02", "");
    until("the day whose file came", || in_state("success") == 1);
    assert_eq!(in_state("waiting"), 1);
}

#[test]
fn a_run_of_the_schedule_waits_as_long_as_its_job_says() {
    let more = "schedule: '@daily'\ncatchup: all\nend: 2026-01-01\nwait_timeout: 1s\n";
    let project = Project::empty().file("jobs/j.sql", &job("{file: in/x, every: 1h}", more));
    let _up = Serving::start(&project, "up");
    until("the end of its time", || state(&project).is_some_and(|state| state == "failed"));
    let run = &project.json(&["runs", "list"])["runs"][0];
    assert_eq!(run["failure"]["code"], "FLOW_BLOCKED", "{run}");
    let message = "job `j` cannot run for ds=2026-01-01: it waits for file `in/x` (there is no such file)";
    assert_eq!(run["failure"]["message"], message, "{run}");
}

#[test]
fn an_object_in_a_bucket_is_waited_for() {
    let moto = Moto::start().unwrap();
    moto.create_bucket("landing").unwrap();
    let project = waiting(r#"{file: "s3://landing/in/{{ ds }}/*\/_SUCCESS", every: 1s}"#);
    let storage = format!(
        "[project]\nname = \"test\"\n[storage]\nendpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"${{env:KEY}}\"\n\
         secret_access_key = \"test\"\nallow_http = true\n",
        moto.endpoint()
    );
    project.write("headworks.toml", &storage);
    let command = |more: &[&str]| {
        let mut command = project.command(&[&["run", "j", "--ds", "2026-01-01", "-q"], more].concat());
        command.env("KEY", "test");
        command
    };
    let missing = outcome(command(&[]).spawn().unwrap());
    let message = "it waits for object `s3://landing/in/2026-01-01/*/_SUCCESS` (there is no such object)";
    assert!(missing.code == 1 && missing.stderr.contains(message), "{missing:?}");
    moto.put("landing", "in/2026-01-01/_SUCCESS", b"").unwrap();
    moto.put("landing", "in/2026-01-02/part/_SUCCESS", b"").unwrap();
    let missing = outcome(command(&[]).spawn().unwrap());
    assert_eq!(missing.code, 1, "not the same depth, or another day: {missing:?}");
    let waits = command(&["--wait", "1m"]).spawn().unwrap();
    moto.put("landing", "in/2026-01-01/part ü/_SUCCESS", b"").unwrap();
    let outcome = outcome(waits);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

/// A project whose job waits for SQL on a connection of this kind.
fn on_shop(connection: &str) -> Project {
    let sql = "{sql: \"select count(*) > 0 from loads where day = '{{ ds }}'\", connection: shop, every: 1s}";
    let project = waiting(sql);
    project.write("headworks.toml", &format!("[project]\nname = \"test\"\n[connections.shop]\n{connection}\n"));
    project
}

fn sql_is_waited_for(project: &Project, change: impl Fn(&str)) {
    let failed = run(project, &["--wait", "1m"]);
    let message = "the wait for SQL on `shop`: `select count(*) > 0 from loads where day...` failed: connection `shop`: cannot run the query:";
    assert!(failed.code == 1 && failed.stderr.contains(message), "{failed:?}");
    assert!(failed.stderr.contains("hint: mend `sql` of the wait"), "{failed:?}");
    change("create table loads(day text)");
    let missing = run(project, &[]);
    assert!(missing.code == 1 && missing.stderr.contains("(the query gave `"), "{missing:?}");
    let waits = start(project, &["--wait", "1m"]);
    change("insert into loads values ('2026-01-01')");
    let outcome = outcome(waits);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn sql_of_sqlite_is_waited_for() {
    let project = on_shop("type = \"sqlite\"\npath = \"shop.db\"");
    let change = |sql: &str| {
        let script =
            "import sqlite3, sys\ndb = sqlite3.connect('shop.db', timeout=30)\nwith db: db.execute(sys.argv[1])";
        let python =
            std::process::Command::new("python3").args(["-c", script, sql]).current_dir(project.path()).status();
        assert!(python.unwrap().success());
    };
    change("create table other(x)");
    sql_is_waited_for(&project, change);
}

#[test]
fn sql_of_postgres_is_waited_for() {
    let server = TempPostgres::shared().unwrap();
    let url = server.create_database().unwrap();
    let database = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let project = on_shop(&format!("type = \"postgres\"\nurl = \"{url}\""));
    sql_is_waited_for(&project, |sql| drop(server.psql(&database, sql).unwrap()));
}

#[test]
fn an_http_answer_is_waited_for() {
    let server = Server::start("404 Not Found");
    let wait = format!("{{http: '{}/moved?token=t0p', headers: {{x-key: '${{env:KEY}}'}}, every: 1s}}", server.url);
    let project = waiting(&wait);
    let command = |more: &[&str]| {
        let mut command = project.command(&[&["run", "j", "--ds", "2026-01-01", "-q"], more].concat());
        command.env("KEY", "s3cret");
        command
    };
    let missing = outcome(command(&[]).spawn().unwrap());
    let message = format!("it waits for `{}/moved?...` (got status 404 Not Found)", server.url);
    assert!(missing.code == 1 && missing.stderr.contains(&message), "{missing:?}");
    let call = server.calls.lock().unwrap()[0].to_lowercase();
    assert!(call.starts_with("get /ready ") && call.contains("x-key: s3cret"), "{call}");
    // An answer that may pass is no end.
    server.answers("500 Internal Server Error");
    let waits = command(&["--wait", "1m"]).spawn().unwrap();
    let before = server.calls();
    until("a second look", || server.calls() >= before + 2);
    server.answers("204 No Content");
    let outcome_of_wait = outcome(waits);
    assert_eq!(outcome_of_wait.code, 0, "{outcome_of_wait:?}");
    for (answer, message) in [
        ("403 Forbidden", "got status 403 Forbidden from "),
        ("302 Found\r\nlocation: http://127.0.0.1:1/", "at another place"),
    ] {
        server.answers(answer);
        project.write("jobs/j.sql", &job(&wait, "description: new\n"));
        let failed = outcome(command(&["--wait", "1m", "--reprocess"]).spawn().unwrap());
        assert!(failed.code == 1 && failed.stderr.contains(message), "{answer}: {failed:?}");
        assert!(!failed.stderr.contains("t0p") && !failed.stderr.contains("s3cret"), "{failed:?}");
    }
    let unset = run(&project, &["--reprocess"]);
    assert!(unset.stderr.contains("the environment variable `KEY` is not set"), "{unset:?}");
}

#[test]
fn waits_are_shown_and_checked() {
    let project = Project::empty()
        .file("headworks.toml", "[project]\nname = \"test\"\n[connections.shop]\ntype = \"sqlite\"\npath = \"shop.db\"\n")
        .file(
            "jobs/good.sql",
            "/* job\nowner: tests\nschedule: after waits\nstart: 2026-01-01\nparams: {host: api.example}\nwait:\n  \
             - self@-1\n  - {file: 's3://landing/{{ ds_nodash }}/_SUCCESS', every: 10m}\n  - {file: 'in/*.csv'}\n  \
             - {sql: \"select max(day) >= '{{ ds }}' from loads\", connection: shop}\n  \
             - {http: 'https://{{ params.host }}/{{ ds }}?token=x', headers: {authorization: 'Bearer ${env:T}'}, expect: [200, 204]}\n*/\n\
             SELECT 1 AS n\n",
        );
    assert_snapshot!(project.seen(&["render", "good", "--ds", "2026-01-01"]));
    let json: Value = project.json(&["render", "good", "--ds", "2026-01-01"]);
    assert_eq!(json["outside"][3]["headers"]["authorization"], "Bearer ${env:T}", "no secrets in plans: {json}");
    assert_eq!(
        (&json["outside"][0]["every_secs"], &json["outside"][1]["task"]),
        (&600.0.into(), &"wait_file_2".into())
    );
    let shown = project.ok(&["jobs", "show", "good"]);
    assert!(
        shown.contains("self@-1, object `s3://landing/{{ ds_nodash }}/_SUCCESS`, file `in/*.csv`, SQL on `shop`"),
        "{shown}"
    );
    project.write(
        "jobs/bad.yml",
        r#"owner: tests
wait:
  - {file: "in/{{ dss }}"}
  - {file: in/, every: 100ms}
  - {file: "ftp://x/y"}
  - {file: "s3://bucket"}
  - {sql: "select 1", connection: shp}
  - {sql: " ", connection: shop}
  - {http: "example.com/{{ outputs.a }}"}
  - {http: "example.com"}
tasks: {a: {type: shell, command: "true"}}
"#,
    );
    project.write("jobs/keys.yml", "wait: [{file: x, evry: 1m}, {fil: x}, {sql: x}, {file: x, sql: y}, {every: 1m}, {http: 5}]\ntasks: {a: {type: shell, command: 'true'}}\n");
    project.write("jobs/star.sql", "/* job\nowner: tests\nwait: [{file: 'in/*/a.csv'}]\n*/ SELECT 1 AS n\n");
    project.write("jobs/view.sql", "/* job\nowner: tests\nkind: view\nwait: [{file: x}]\n*/ SELECT 1 AS n\n");
    assert_snapshot!(project.seen(&["validate"]));
}
