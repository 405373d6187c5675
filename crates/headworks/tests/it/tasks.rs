//! Jobs of tasks from their file to their end.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread::JoinHandle,
};

use insta::assert_snapshot;

use crate::project::{Outcome, Project, outcome};

fn run(project: &Project) -> Outcome {
    project.run(&["run", "j", "--ds", "2026-01-01", "-q"])
}

/// The states of the last run's tasks, `list success`.
fn states(project: &Project) -> Vec<String> {
    let runs = project.json(&["runs", "list"]);
    let run = project.json(&["runs", "show", runs["runs"][0]["run_id"].as_str().unwrap()]);
    let state =
        |task: &serde_json::Value| format!("{} {}", task["task"].as_str().unwrap(), task["state"].as_str().unwrap());
    run["tasks"].as_array().unwrap().iter().map(state).collect()
}

fn logs(project: &Project, more: &[&str]) -> String {
    let runs = project.json(&["runs", "list"]);
    let id = runs["runs"][0]["run_id"].as_str().unwrap();
    project.ok(&[&["runs", "logs", id][..], more].concat())
}

/// The lines of a text without their times.
fn untimed(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| Some(line.split_once("Z ")?.1)).collect()
}

const PIPELINE: &str = r#"
description: Loads files
params: {prefix: part}
tasks:
  list:
    type: python
    script: |
      import json, os
      files = [os.environ["HEADWORKS_DS"] + "-" + name for name in ("a", "b", "c")]
      json.dump({"files": files, "n": len(files)}, open(os.environ["HEADWORKS_OUTPUT"], "w"))
  load:
    type: shell
    after: [list]
    each: "{{ outputs.list.files }}"
    command: |
      echo "{{ params.prefix }} {{ item }} of {{ outputs.list.n }}"
      echo "\"{{ item }}!\"" > "$HEADWORKS_OUTPUT"
  join:
    type: shell
    after: [load]
    command: [echo, "{{ outputs.load | join('+') }}"]
  count:
    type: sql
    sql: SELECT {{ outputs.list.n }} AS n, '{{ ds }}' AS day
    after: [list]
  use:
    type: shell
    after: [count, join]
    command: echo "n is {{ outputs.count[0].n }}"
  alarm: {type: shell, command: "exit 1", after: [load], rule: one_failed}
"#;

#[test]
fn outputs_are_passed_on() {
    let project = Project::empty().file("jobs/j.yml", PIPELINE);
    let outcome = run(&project);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let mut seen = states(&project);
    seen.sort();
    assert_eq!(
        seen,
        [
            "alarm skipped",
            "count success",
            "join success",
            "list success",
            "load success",
            "load.0 success",
            "load.1 success",
            "load.2 success",
            "use success"
        ]
    );
    assert!(untimed(&logs(&project, &["--task", "join"])).contains(&"2026-01-01-a!+2026-01-01-b!+2026-01-01-c!"));
    assert!(untimed(&logs(&project, &["--task", "use"])).contains(&"n is 3"));
    let items = logs(&project, &["--task", "load"]);
    assert!(untimed(&items).contains(&"part 2026-01-01-b of 3"), "{items}");
    assert_eq!(items.lines().filter(|line| line.starts_with("==> load.")).count(), 3, "{items}");
    let all = logs(&project, &[]);
    assert!(all.contains("==> list, attempt 1: success <=="), "{all}");
    // One file holds the logs of all attempts, and each shows its own lines.
    let files = project.files(".headworks/logs");
    assert_eq!(files.len(), 1, "{files:?}");
    let own = logs(&project, &["--task", "load.1"]);
    let wrote = ["item \"2026-01-01-b\"", "part 2026-01-01-b of 3", "output: \"2026-01-01-b!\"", "done"];
    assert_eq!(untimed(&own)[2..], wrote);
    assert!(own.lines().all(|line| line.starts_with("20")), "{own}");
    let whole = std::fs::read_to_string(&files[0]).unwrap();
    assert_eq!(whole.lines().count(), untimed(&all).len(), "{whole}\n{all}");
    let unknown = project.run(&["runs", "logs", "x", "--task", "list", "--attempt", "1"]);
    assert_eq!(unknown.code, 2);
}

#[test]
fn the_guide_s_example_runs() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/tasks.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let (_, rest) = guide.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let project = Project::empty().file("jobs/j.yml", example);
    let outcome = run(&project);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let report = logs(&project, &["--task", "report"]);
    let expected = r#"3 files for 2026-01-01: [{"lines":5},{"lines":5},{"lines":5}]"#;
    assert!(untimed(&report).contains(&expected), "{report}");
}

#[test]
fn tasks_are_rendered_and_listed() {
    let project = Project::empty().file("jobs/j.yml", PIPELINE);
    assert_snapshot!(project.seen(&["render", "j", "--ds", "2026-01-01"]));
    let json = project.json(&["render", "j", "--ds", "2026-01-01"]);
    let count = json["tasks"].as_array().unwrap().iter().find(|task| task["task"] == "count").unwrap();
    assert_eq!(count["action"]["sql"], "SELECT {{ outputs.list.n }} AS n, '2026-01-01' AS day", "{json}");
    let jobs = project.json(&["jobs", "list"]);
    assert!(jobs["jobs"][0]["table"].is_null(), "{jobs}");
    assert_eq!(jobs["jobs"][0]["tasks"].as_array().unwrap().len(), 6);
    assert!(project.ok(&["jobs", "list"]).contains("6 tasks"));
}

#[test]
fn logs_are_followed_to_the_end_of_the_run() {
    let project = Project::empty().file(
        "jobs/j.yml",
        r#"
tasks:
  one: {type: shell, command: "echo first; while [ ! -e go ]; do sleep 0.05; done; printf 'no end of line'"}
  two: {type: shell, command: "echo last", after: [one]}
"#,
    );
    let run = project.command(&["run", "j", "--ds", "2026-01-01", "-q"]).spawn().unwrap();
    let id = loop {
        let runs = project.json(&["runs", "list", "--state", "running"]);
        if let Some(id) = runs["runs"][0]["run_id"].as_str() {
            break id.to_owned();
        }
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    };
    let mut follow = project.command(&["runs", "logs", &id, "--follow"]).spawn().unwrap();
    let mut begun = String::new();
    let mut stdout = follow.stdout.take().unwrap();
    while !begun.contains("first\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        begun.push(byte[0].into());
    }
    project.write("go", "");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("no end of line") && rest.contains(" last\n"), "{begun}{rest}");
    assert!(rest.contains("==> two, attempt 2"), "{rest}");
    let followed = outcome(follow);
    assert!(followed.code == 0 && followed.stderr.contains("ended: success"), "{followed:?}");
    assert_eq!(outcome(run).code, 0);
    // Of a run that is over it shows what there is.
    let two = project.ok(&["runs", "logs", &id, "-f", "--task", "two"]);
    assert!(two.contains(" last\n") && !two.contains("first") && !two.contains("end of line"), "{two}");
}

#[test]
fn rules_and_allowed_failures_decide() {
    let project = Project::empty().file(
        "jobs/j.yml",
        r#"
retries: {times: 0}
tasks:
  shaky: {type: shell, command: "echo oh dear; exit 3", allow_failure: true}
  next: {type: shell, command: "true", after: [shaky]}
  broken: {type: shell, command: "echo first; echo second >&2; exit 7"}
  never: {type: shell, command: "touch never", after: [broken]}
  alarm: {type: shell, command: "touch alarm", after: [broken, next], rule: one_failed}
  tidy: {type: shell, command: "touch tidy", after: [never, alarm], rule: all_done}
  early: {type: shell, command: "true", after: [broken], rule: always}
"#,
    );
    let outcome = run(&project);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let error = "task `broken` ended with exit code 7\nhint: its last lines were\n  first\n  second\n";
    assert!(outcome.stderr.contains(error), "{}", outcome.stderr);
    let mut seen = states(&project);
    seen.sort();
    assert_eq!(
        seen,
        [
            "alarm success",
            "broken failed",
            "early success",
            "never upstream_failed",
            "next success",
            "shaky failed",
            "tidy success"
        ]
    );
    let there = |name: &str| project.path().join(name).exists();
    assert!(there("alarm") && there("tidy") && !there("never"));
}

#[test]
fn failures_are_tried_again() {
    let project = Project::empty().file(
        "jobs/j.yml",
        r#"
tasks:
  later:
    type: shell
    command: "echo try $HEADWORKS_ATTEMPT; [ $HEADWORKS_ATTEMPT = 3 ] || exit 75"
    retries: {times: 2, delay: 10ms}
  never:
    type: shell
    command: "exit 75"
    retries: {times: 1, delay: 10ms}
    allow_failure: true
  typo: {type: shell, command: [no-such-program], allow_failure: true}
  wrong: {type: shell, command: "echo nonsense > $HEADWORKS_OUTPUT", allow_failure: true}
  large: {type: shell, command: "head -c 70000 /dev/zero > $HEADWORKS_OUTPUT", allow_failure: true}
  lost: {type: shell, command: "echo {{ outputs.wrong.x }}", after: [wrong], allow_failure: true}
  long: {type: shell, command: "true", each: "{{ range(1001) | list }}", allow_failure: true}
"#,
    );
    let validated = project.run(&["validate"]);
    assert!(validated.stdout.contains("it has 1001 items, and 1000 is the most"), "{validated:?}");
    project
        .write("jobs/j.yml", &std::fs::read_to_string(project.path().join("jobs/j.yml")).unwrap().replace("1001", "2"));
    let outcome = run(&project);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let runs = project.json(&["runs", "list"]);
    let run = project.json(&["runs", "show", runs["runs"][0]["run_id"].as_str().unwrap()]);
    let attempts = run["attempts"].as_array().unwrap();
    let of = |task: &str| attempts.iter().filter(|a| a["task"] == task).collect::<Vec<_>>();
    assert_eq!((of("later").len(), of("never").len(), of("typo").len()), (3, 2, 1), "{run}");
    let numbers: std::collections::BTreeSet<u64> = attempts.iter().map(|a| a["attempt"].as_u64().unwrap()).collect();
    assert_eq!(numbers.len(), attempts.len(), "each attempt has a number of its own");
    let message = |task: &str| of(task).last().unwrap()["failure"]["message"].as_str().unwrap().to_owned();
    assert!(message("typo").contains("`no-such-program` cannot be started"), "{}", message("typo"));
    assert!(message("wrong").contains("task `wrong` wrote an output that is not JSON"), "{}", message("wrong"));
    assert!(message("large").contains("wrote an output of 68 KiB, and 64 KiB is the most"), "{}", message("large"));
    assert!(message("lost").contains("`outputs.wrong.x` is not there"), "{}", message("lost"));
}

#[test]
fn pools_bound_what_runs_at_once() {
    let project =
        Project::empty().file("headworks.toml", "[project]\nname = \"test\"\n[pools]\none = 1\ntwo = 2\n").file(
            "jobs/j.yml",
            r#"
retries: {times: 0}
tasks:
  alone:
    type: shell
    pool: one
    each: [1, 2, 3, 4]
    command: "mkdir lock || exit 1; sleep 0.1; rmdir lock"
  both:
    type: shell
    pool: two
    slots: 2
    each: [1, 2, 3]
    command: "mkdir lock2 || exit 1; sleep 0.1; rmdir lock2"
"#,
        );
    let outcome = run(&project);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn a_hundred_commands_take_seconds() {
    let project = Project::empty()
        .file("jobs/j.yml", "tasks:\n  t: {type: shell, command: 'true', each: '{{ range(100) | list }}'}\n");
    let begun = std::time::Instant::now();
    assert_eq!(run(&project).code, 0);
    let took = begun.elapsed();
    assert_eq!(states(&project).len(), 101);
    assert!(took.as_secs() < 30, "{took:?}");
}

#[test]
fn files_with_problems_are_told() {
    let project = Project::empty()
        .file("headworks.toml", "[project]\nname = \"test\"\n[pools]\netl = 2\n")
        .file(
            "jobs/tasks.yml",
            r#"tables: x
columns: {a: {type: bigint}}
pool: elt
tasks:
  a: {type: shel, command: "true"}
  b: {type: shell, comand: "true"}
  c: {type: http}
"#,
        )
        .file(
            "jobs/more.yml",
            r#"columns: {a: {type: bigint}}
wait: [self@-1]
pool: elt
tasks:
  a: {type: shell, command: "true", after: [b, bb]}
  b: {type: shell, command: "true", after: [a]}
  wait_c: {type: shell, command: " "}
  d-e: {type: python}
  f: {type: python, file: no.py, rule: all_done}
  g: {type: http, url: "ftp://x", pool: etl, slots: 3}
  h: {type: shell, command: "{{ dss }} {{ item }}"}
  i: {type: shell, command: "{{ outputs.h.x }}"}
  j: {type: shell, command: "true", each: outputs.h, slots: 2}
  k: {type: sql, sql: "SELECT 1 FROM wait::x"}
  l: {type: sql, sql: "SELEC 1"}
  m: {type: shell, command: "true", env: {HEADWORKS_X: "1", "a b": "2"}}
"#,
        )
        .file("jobs/both.yml", "import: {connection: x, table: y}\ntasks: {a: {type: shell, command: 'true'}}\n")
        .file("jobs/sql.sql", "/* job\ntasks: {a: {type: shell, command: 'true'}}\n*/ SELECT 1\n")
        .file("jobs/none.yml", "owner: me\n");
    assert_snapshot!(project.seen(&["validate"]));
}

/// Answers calls one after the other, each with one of these, and gives what was asked.
fn serve(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let answer = |answer: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read_request(&mut stream);
            // Who refuses a long answer hangs up in its middle.
            let _ = stream.write_all(answer.as_bytes());
            request
        };
        answers.into_iter().map(answer).collect()
    });
    (url, served)
}

fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).unwrap();
        request.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        assert!(n > 0, "{text}");
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

#[test]
fn calls_are_made_and_tried_again() {
    let json = "content-type: application/json; charset=utf-8\r\n";
    let (url, served) = serve(vec![
        answer("503 Service Unavailable", "retry-after: 0\r\n", "busy"),
        answer("200 OK", json, r#"{"id": 7}"#),
        answer("404 Not Found", "", "no such thing\nmore"),
        answer("302 Found", "location: https://127.0.0.1:1/x\r\n", ""),
        answer("200 OK", "", &"x".repeat(3000)),
        answer("418 I'm a teapot", "", "short"),
    ]);
    let project = Project::empty().file(
        "jobs/j.yml",
        &format!(
            r#"
retries: {{times: 3, delay: 10ms}}
tasks:
  make:
    type: http
    method: POST
    url: {url}/things?day={{{{ ds }}}}
    headers: {{authorization: "Bearer ${{env:TOKEN}}"}}
    body: {{day: "{{{{ ds }}}}", n: 1}}
  use: {{type: shell, command: "echo id {{{{ outputs.make.body.id }}}} {{{{ outputs.make.status }}}}", after: [make]}}
  missing: {{type: http, url: {url}/missing, after: [use], allow_failure: true}}
  away: {{type: http, url: {url}/away, after: [missing], allow_failure: true}}
  large: {{type: http, url: {url}/large, response_max: 2KiB, after: [away], allow_failure: true}}
  teapot: {{type: http, url: {url}/teapot, expect: [200, 418], after: [large]}}
  nobody: {{type: http, url: "http://127.0.0.1:1/", after: [teapot], allow_failure: true, retries: {{times: 1, delay: 10ms}}}}
"#
        ),
    );
    let mut command = project.command(&["run", "j", "--ds", "2026-01-01", "-q"]);
    let outcome = crate::project::outcome(command.env("TOKEN", "t0p").spawn().unwrap());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let requests = served.join().unwrap();
    assert!(requests[1].starts_with("POST /things?day=2026-01-01 HTTP/1.1\r\n"), "{}", requests[1]);
    assert!(requests[1].to_lowercase().contains("authorization: bearer t0p\r\n"), "{}", requests[1]);
    assert!(requests[1].ends_with(r#"{"day":"2026-01-01","n":1}"#), "{}", requests[1]);
    assert!(untimed(&logs(&project, &["--task", "use"])).contains(&"id 7 200"));
    let runs = project.json(&["runs", "list"]);
    let run = project.json(&["runs", "show", runs["runs"][0]["run_id"].as_str().unwrap()]);
    let attempts = run["attempts"].as_array().unwrap();
    let message = |task: &str| {
        let of: Vec<_> = attempts.iter().filter(|a| a["task"] == task).collect();
        (of.len(), of.last().unwrap()["failure"]["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(message("make").0, 2);
    assert_eq!(message("missing"), (1, format!("task `missing` got status 404 Not Found from {url}/missing")));
    let away = message("away");
    assert!(away.0 == 1 && away.1.contains("it leads to `https://127.0.0.1:1/x`, at another place"), "{away:?}");
    assert!(message("large").1.contains("got an answer of more than 2.0 KiB"), "{:?}", message("large"));
    let nobody = message("nobody");
    assert!(nobody.0 == 2 && nobody.1.contains("could not call http://127.0.0.1:1/"), "{nobody:?}");
    assert!(!logs(&project, &[]).contains("t0p"));
}
