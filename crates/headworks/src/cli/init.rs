use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use headworks_domain::ErrorKind;
use serde_json::json;

use crate::{
    app::App,
    fail::{DONE, Failure},
};

/// Make a new project folder
///
/// It gets settings, a first job that runs at once, and a sketch of an import. The folder may exist, and may be a git repository, but must be empty otherwise.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  headworks init shop && cd shop && headworks run calendar")]
pub(crate) struct Args {
    /// The folder to make
    dir: PathBuf,
}

/// What a folder may hold and still become a project.
const HARMLESS: [&str; 7] =
    [".git", ".gitignore", ".gitattributes", "README.md", "LICENSE", ".editorconfig", ".DS_Store"];

pub(crate) fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let dir = app.from_here(&args.dir);
    check_folder(&dir)?;
    let name = project_name(&dir);
    let schema = serde_json::to_string_pretty(&headworks_flow::job_schema())? + "\n";
    let files = [
        ("headworks.toml", include_str!("init/headworks.toml").replace("PROJECT_NAME", &name)),
        (".gitignore", include_str!("init/gitignore").to_owned()),
        ("job.schema.json", schema),
        ("jobs/calendar.sql", include_str!("init/calendar.sql").to_owned()),
        ("jobs/orders.yml.example", include_str!("init/orders.yml.example").to_owned()),
    ];
    let mut written = Vec::new();
    for (file, text) in &files {
        if write_new(&dir.join(file), text)? {
            written.push(*file);
        }
    }
    if app.out.json {
        app.out.document(&json!({"project": dir, "files": written}))?;
        return Ok(ExitCode::from(DONE));
    }
    let shown = args.dir.display();
    app.note(format_args!(
        "made the project `{name}` in {shown}: {}\n\n\
         next:\n  \
         cd {shown}\n  \
         headworks validate                             # check all files\n  \
         headworks run calendar                         # the last whole day\n  \
         headworks sql 'SELECT * FROM calendar_latest'\n\n\
         then write your own: jobs/calendar.sql shows how, jobs/orders.yml.example imports a table from a database",
        written.join(", ")
    ));
    Ok(ExitCode::from(DONE))
}

fn check_folder(dir: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(
                Failure::usage(format!("`{}` is a file", dir.display()), "name a folder that is new or empty").into()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read the folder `{}`", dir.display())),
    };
    let mut foreign = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("cannot read the folder `{}`", dir.display()))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name == "headworks.toml" || name == ".headworks" {
            return Err(Failure::usage(
                format!("`{}` is a project already: it has `{name}`", dir.display()),
                format!("check it with headworks -C {} validate, or name another folder", dir.display()),
            )
            .into());
        }
        if !HARMLESS.contains(&name.as_str()) {
            foreign.push(name);
        }
    }
    if foreign.is_empty() {
        return Ok(());
    }
    foreign.sort();
    let more = if foreign.len() > 3 { format!(" and {} more", foreign.len() - 3) } else { String::new() };
    foreign.truncate(3);
    Err(Failure::new(
        ErrorKind::Invalid,
        "CLI_FOLDER_NOT_EMPTY",
        format!("`{}` is not empty: it has `{}`{more}", dir.display(), foreign.join("`, `")),
    )
    .hint("name a folder that is new or empty")
    .into())
}

/// The folder's own name, cut to what a project's name may have.
fn project_name(dir: &Path) -> String {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String =
        name.chars().map(|c| if c.is_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    if name.is_empty() { "project".to_owned() } else { name }
}

/// Writes a file that must not be there; one that is there stays, and the answer is false.
fn write_new(path: &Path, text: &str) -> anyhow::Result<bool> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => {
            std::io::Write::write_all(&mut file, text.as_bytes())
                .with_context(|| format!("cannot write `{}`", path.display()))?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot write `{}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_folders() {
        for (dir, expected) in [("/x/shop", "shop"), ("/x/my shop!", "my-shop-"), ("/", "project")] {
            assert_eq!(project_name(Path::new(dir)), expected);
        }
    }
}
