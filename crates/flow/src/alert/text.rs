//! The words of a message: subject, plain text, Slack's blocks, JSON.

use std::fmt::Write;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{Event, EventKind, Message};

/// The most events that a message tells one by one; the others are counted.
const EVENTS_SHOWN: usize = 20;
/// The most characters of an error in a text for people.
const ERROR_CHARS_MAX: usize = 700;
/// Slack takes 150 characters in a header and 3,000 in a section (api.slack.com/reference/block-kit/blocks).
const SLACK_HEADER_CHARS: usize = 150;
const SLACK_SECTION_CHARS: usize = 2_900;
/// The most characters of a mail's subject.
const SUBJECT_CHARS_MAX: usize = 200;

impl Message {
    /// One line that says what it is about.
    pub fn subject(&self) -> String {
        let what = match &self.events[..] {
            [] => "test alert".to_owned(),
            [event] => event.headline(),
            events => {
                let counts: Vec<String> = EventKind::ALL
                    .into_iter()
                    .map(|kind| (events.iter().filter(|e| e.kind == kind).count(), kind))
                    .filter(|(count, _)| *count > 0)
                    .map(|(count, kind)| counted(count, kind))
                    .collect();
                counts.join(", ")
            }
        };
        shortened(&one_line(&format!("[{}] {what}", self.project)), SUBJECT_CHARS_MAX)
    }

    /// The whole message as plain text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.events.is_empty() {
            text += "This is a test of Headworks' alerts. It arrived.\n\n";
        }
        for event in self.events.iter().take(EVENTS_SHOWN) {
            text += &event.headline();
            text.push('\n');
            for line in event.details() {
                let _ = writeln!(text, "  {}", line.replace('\n', "\n  "));
            }
            text.push('\n');
        }
        if let Some(more) = self.more() {
            let _ = writeln!(text, "{more}\n");
        }
        let _ = writeln!(text, "project {}, alert {}", one_line(&self.project), self.id);
        text
    }

    /// The body for an incoming webhook of Slack.
    pub fn slack(&self) -> Value {
        let section = |text: String| json!({"type": "section", "text": {"type": "mrkdwn", "text": text}});
        let subject = self.subject();
        let header = shortened(&subject, SLACK_HEADER_CHARS);
        let mut blocks =
            vec![json!({"type": "header", "text": {"type": "plain_text", "text": header, "emoji": false}})];
        if self.events.is_empty() {
            blocks.push(section("This is a test of Headworks' alerts. It arrived.".to_owned()));
        }
        for event in self.events.iter().take(EVENTS_SHOWN) {
            let details: Vec<String> = event.details().iter().map(|line| slack_escaped(line)).collect();
            let text = format!("*{}*\n{}", slack_escaped(&event.headline()), details.join("\n"));
            blocks.push(section(shortened(&text, SLACK_SECTION_CHARS)));
        }
        blocks.extend(self.more().map(section));
        let foot = format!("project {}, alert {}", slack_escaped(&self.project), self.id);
        blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": foot}]}));
        json!({"text": slack_escaped(&subject), "blocks": blocks})
    }

    /// The body for webhooks: every event with all that is known of it.
    pub fn json(&self) -> Value {
        json!({
            "version": 1,
            "id": self.id,
            "project": self.project,
            "test": self.events.is_empty(),
            "subject": self.subject(),
            "events": self.events,
        })
    }

    fn more(&self) -> Option<String> {
        let more = self.events.len().saturating_sub(EVENTS_SHOWN);
        (more > 0).then(|| format!("and {more} more: headworks alerts list"))
    }
}

impl Event {
    /// What happened to what, as `orders failed for ds=2026-03-07`.
    pub fn headline(&self) -> String {
        let verb = match self.kind {
            EventKind::Failure => "failed for",
            EventKind::Recovery => "recovered for",
            EventKind::Deadline => "missed its deadline for",
            EventKind::Late => "was late for",
        };
        format!("{} {verb} {}", self.job, self.partition)
    }

    /// What a person needs to act, a line each; the error may have several.
    fn details(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let on_clock = |time: DateTime<Utc>| time.with_timezone(&self.zone()).format("%Y-%m-%d %H:%M %Z").to_string();
        match (self.kind, self.due) {
            (EventKind::Deadline, Some(due)) => lines.push(format!("due {}, and not published", on_clock(due))),
            (EventKind::Late, Some(due)) => {
                let late = shown_span(self.lateness());
                lines.push(format!("published {}, {late} after its deadline {}", on_clock(self.at), on_clock(due)));
            }
            (EventKind::Recovery, _) => lines.push(format!("published {}", on_clock(self.at))),
            _ => lines.push(format!("at {}", on_clock(self.at))),
        }
        if let Some(failure) = &self.failure {
            lines.push(format!("{}: {}", failure.code, shortened(&failure.message, ERROR_CHARS_MAX)));
            lines.extend(failure.hint.as_ref().map(|hint| format!("hint: {}", shortened(hint, ERROR_CHARS_MAX))));
        }
        lines.extend(self.blocked_by.iter().map(|line| shortened(line, ERROR_CHARS_MAX)));
        lines.extend(self.owner.as_ref().map(|owner| format!("owner: {owner}")));
        match (&self.run_id, self.attempt) {
            (Some(run), Some(attempt)) => {
                lines.push(format!("run {run}, attempt {attempt}: headworks runs show {run}"))
            }
            (Some(run), None) => lines.push(format!("run {run}: headworks runs show {run}")),
            (None, _) => {}
        }
        lines
    }
}

fn counted(count: usize, kind: EventKind) -> String {
    let (one, many) = match kind {
        EventKind::Failure => ("failure", "failures"),
        EventKind::Recovery => ("recovery", "recoveries"),
        EventKind::Deadline => ("missed deadline", "missed deadlines"),
        EventKind::Late => ("late publish", "late publishes"),
    };
    format!("{count} {}", if count == 1 { one } else { many })
}

/// `40 min`, `3 h 05 min`, `2 days`.
fn shown_span(span: TimeDelta) -> String {
    match span.num_minutes().max(0) {
        0 => format!("{} s", span.num_seconds().max(0)),
        minutes @ 1..60 => format!("{minutes} min"),
        minutes @ 60..2880 => format!("{} h {:02} min", minutes / 60, minutes % 60),
        minutes => format!("{} days", minutes / 1440),
    }
}

/// At most so many characters, the last of them `…` when some are missing.
pub(super) fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// Without line ends and other control characters, which have no place in a header.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Slack's three signs, so that no error text can name a channel or a person.
fn slack_escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
