//! `headworks alerts`, against servers that keep what they are told.

use headworks_testkit::{HookInbox, MailInbox};
use insta::assert_snapshot;

use crate::project::{Project, outcome};

fn project(hook: &HookInbox, mail: &MailInbox) -> Project {
    let settings = format!(
        r#"[project]
name = "shop"
[alerts.targets.team]
type = "slack"
url = "${{env:SLACK}}"
allow_private = true
[alerts.targets.pager]
type = "webhook"
url_file = "pager.url"
token_env = "TOKEN"
allow_private = true
[alerts.targets.mail]
type = "email"
host = "127.0.0.1"
port = {}
security = "none"
from = "headworks@example.com"
to = ["data@example.com"]
"#,
        mail.port()
    );
    Project::nothing()
        .file("headworks.toml", &settings)
        .file("pager.url", &format!("{}\n", hook.url("/pager?key=s3cret")))
}

#[test]
fn a_test_goes_to_every_target_and_shows_no_secret() {
    let (hook, mail) = (HookInbox::start().unwrap(), MailInbox::start().unwrap());
    let project = project(&hook, &mail);
    let test = |args: &[&str]| {
        let mut command = project.command(&[&["alerts", "test", "-vv"][..], args].concat());
        command.env("SLACK", hook.url("/services/T0/B0/s3cret")).env("TOKEN", "t0ken");
        outcome(command.spawn().unwrap())
    };
    let all = test(&["--json"]);
    assert_eq!(all.code, 0, "{all:?}");
    let told: serde_json::Value = serde_json::from_str(&all.stdout).unwrap();
    assert_eq!(told["targets"].as_array().unwrap().len(), 3, "{told}");
    let hooks = hook.hooks();
    let lines: Vec<&str> = hooks.iter().map(|hook| hook.line.as_str()).collect();
    assert_eq!(lines, ["POST /pager?key=s3cret", "POST /services/T0/B0/s3cret"]);
    assert_eq!(hooks[0].header("authorization"), Some("Bearer t0ken"));
    assert!(hooks[0].body.contains("\"test\":true") && hooks[1].body.contains("[shop] test alert"), "{hooks:?}");
    assert!(mail.letters()[0].text.contains("Subject: [shop] test alert"), "{:?}", mail.letters());

    hook.answer("404 No Such Channel");
    let one = test(&["team"]);
    assert_eq!((one.code, hook.hooks().len()), (1, 3), "{one:?}");
    assert!(one.stdout.contains("404") && one.stdout.contains("said by the inbox"), "{one:?}");
    for outcome in [all, one] {
        for secret in ["s3cret", "t0ken"] {
            assert!(!outcome.stdout.contains(secret) && !outcome.stderr.contains(secret), "{outcome:?}");
        }
    }
}

#[test]
fn what_stands_in_the_way_is_said() {
    let (hook, mail) = (HookInbox::start().unwrap(), MailInbox::start().unwrap());
    let project = project(&hook, &mail);
    project.write("jobs/a.sql", "/* job\nalerts: [tem]\ndeadline: '07:00'\n*/\nSELECT 1 AS x\n");
    project.write("jobs/b.sql", "/* job\nalerts: noone\n*/\nSELECT 1 AS x\n");
    let mut all = String::new();
    for args in [&["alerts", "test", "tem"][..], &["alerts", "test", "team"], &["alerts", "list"], &["validate"]] {
        all += &project.seen(args);
        all += "\n";
    }
    // Loopback is a private network.
    project.write("headworks.toml", "[alerts.targets.hook]\ntype = \"webhook\"\nurl = \"https://localhost/x\"\n");
    all += &project.seen(&["alerts", "test"]);
    project.write("headworks.toml", "");
    all += &project.seen(&["alerts", "test"]);
    assert_snapshot!(all);
    assert_eq!(project.json(&["alerts", "list"]), serde_json::json!({"alerts": []}));
}
