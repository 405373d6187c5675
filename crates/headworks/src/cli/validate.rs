use std::process::ExitCode;

use headworks_domain::{Problem, Severity};
use serde_json::json;

use crate::{
    app::App,
    fail::{DONE, FAILED, shown_problem},
    output::{Style, counted, json_problem, styled},
};

/// Check every file of the project
///
/// Shows all problems at once, each with its place. Needs no database and no network.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks validate
  headworks validate --deny-warnings --format github      in a pull request's check

Exit codes: 0 no errors, 1 errors (or warnings with --deny-warnings), 2 no project.")]
pub(crate) struct Args {
    /// Fail on warnings too
    #[arg(long)]
    deny_warnings: bool,
    /// How problems are written
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The offending line with a caret
    Text,
    /// Commands of GitHub Actions, which mark the lines of a pull request
    Github,
}

pub(crate) fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let (project, problems) = app.loaded()?;
    let count = |severity| problems.iter().filter(|p| p.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let passed = errors == 0 && (warnings == 0 || !args.deny_warnings);
    let code = ExitCode::from(if passed { DONE } else { FAILED });
    let jobs = project.jobs.len();
    if app.out.json {
        let problems: Vec<_> = problems.iter().map(json_problem).collect();
        app.out.document(&json!({"jobs": jobs, "errors": errors, "warnings": warnings, "problems": problems}))?;
        return Ok(code);
    }
    for problem in problems {
        match args.format {
            Format::Text => app.out.line(format_args!("{}\n", shown_problem(problem, app.out.stdout_color)))?,
            Format::Github => app.out.line(github(problem))?,
        }
    }
    let summary = format!(
        "{} checked: {}, {}",
        counted(jobs as u64, "job"),
        counted(errors as u64, "error"),
        counted(warnings as u64, "warning"),
    );
    let style = if errors > 0 {
        Style::Red
    } else if warnings > 0 {
        Style::Yellow
    } else {
        Style::Green
    };
    app.note(styled(app.out.stderr_color, style, &summary));
    Ok(code)
}

/// A workflow command of GitHub Actions: line ends and its own signs are percent-encoded.
fn github(problem: &Problem) -> String {
    let encoded = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| encoded(text).replace(':', "%3A").replace(',', "%2C");
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut text = format!("::{severity} file={}", property(&problem.place.file));
    if problem.place.line > 0 {
        text += &format!(",line={}", problem.place.line);
    }
    if problem.place.column > 0 {
        text += &format!(",col={}", problem.place.column);
    }
    let hint = problem.hint.as_ref().map(|h| format!("\nhint: {h}")).unwrap_or_default();
    text + "::" + &encoded(&format!("{}{hint}", problem.message))
}

#[cfg(test)]
mod tests {
    use headworks_domain::Place;

    use super::*;

    #[test]
    fn github_commands_stay_on_one_line() {
        let problem = Problem {
            severity: Severity::Error,
            place: Place { file: "jobs/a,b.sql".to_owned(), line: 3, column: 5 },
            text: String::new(),
            message: "100% wrong".to_owned(),
            hint: Some("mend it".to_owned()),
        };
        assert_eq!(github(&problem), "::error file=jobs/a%2Cb.sql,line=3,col=5::100%25 wrong%0Ahint: mend it");
    }
}
