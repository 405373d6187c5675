use std::{collections::BTreeSet, process::ExitCode};

use headworks_domain::{Columns, Days, Ds, Fault, Grant, TablePattern};
use headworks_engine::GrantCheck;
use headworks_meta::{Accounts, GrantRow, Grantee};
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::{DONE, Failure},
    output::{Align, Table},
};

/// Say what analysts and viewers may read
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Add(AddArgs),
    List(ListArgs),
    Remove(RemoveArgs),
}

/// Let a user, or all of a role, read tables or a part of them
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks grants add --to ann --table orders
  headworks grants add --to role:viewer --table '*' --except email,phone
  headworks grants add --to ann --table 'events_*' --from 2026-01-01 --event-types view,click
  headworks grants add --to role:analyst --table orders --rows \"country = 'DE'\"
  headworks grants add --to role:viewer --table tasks --rows 'owner = current_user'

Grants add up: a row is visible when any of them shows it, and a cell when one that shows its row has its column.
A project begins with a grant of everything to analysts and one to viewers: remove these before others restrict anything.")]
pub(crate) struct AddArgs {
    /// Who has it: a user, or role:analyst, role:viewer
    #[arg(long, value_name = "USER|role:ROLE")]
    to: Grantee,
    /// The tables and views, by name; `*` stands for any text, and `<table>_latest` goes with its table
    #[arg(long, value_name = "PATTERN")]
    table: String,
    /// These columns only
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',', conflicts_with = "except")]
    columns: Option<Vec<String>>,
    /// All columns but these, also those that come later
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    except: Option<Vec<String>>,
    /// From this ds on
    #[arg(long, value_name = "DS")]
    from: Option<Ds>,
    /// Up to this ds, itself included
    #[arg(long, value_name = "DS")]
    to_ds: Option<Ds>,
    /// Rows with these values of the column event_type only
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',')]
    event_types: Option<Vec<String>>,
    /// Rows for which this SQL condition holds; it may use hidden columns, and current_user
    #[arg(long, value_name = "SQL")]
    rows: Option<String>,
}

/// List the grants
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Those of this user or role only
    #[arg(long, value_name = "USER|role:ROLE")]
    to: Option<Grantee>,
}

/// Take a grant back; it counts within a second
#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    /// Its number, as grants list shows it
    id: i64,
}

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    let accounts = app.accounts().await?;
    match command {
        Command::Add(args) => add(app, accounts, args).await?,
        Command::List(args) => list(app, accounts, args).await?,
        Command::Remove(RemoveArgs { id }) => {
            accounts.revoke_grant(id).await?;
            match app.out.json {
                true => app.out.document(&json!({"removed": id}))?,
                false => app.note(format_args!("grant {id} is taken back")),
            }
        }
    }
    Ok(ExitCode::from(DONE))
}

/// The longest text of a part of a grant, in bytes.
const TEXT_BYTES_MAX: usize = 4_096;
/// The most columns or event types of one grant.
const TEXTS_MAX: usize = 1_000;

/// What was typed, as far as one can tell without the tables.
fn resolved(args: AddArgs) -> Result<(Grantee, Grant), Failure> {
    let AddArgs { to, table, columns, except, from, to_ds, event_types, rows } = args;
    let text = |what: &str, text: &str| {
        let reason = if text.trim().is_empty() {
            "is empty"
        } else if text.len() > TEXT_BYTES_MAX {
            "is too long"
        } else if text.contains('\0') {
            "has a character in it that no text may have"
        } else {
            return Ok(());
        };
        Err(Failure::usage(format!("the value of {what} {reason}"), "see headworks grants add --help"))
    };
    let texts = |what: &str, given: Option<Vec<String>>| -> Result<Option<BTreeSet<String>>, Failure> {
        let Some(given) = given else { return Ok(None) };
        if given.len() > TEXTS_MAX {
            return Err(Failure::usage(format!("{what} has more than {TEXTS_MAX} values"), "say it with --rows"));
        }
        given.iter().try_for_each(|one| text(what, one))?;
        Ok(Some(given.into_iter().collect()))
    };
    text("--table", &table)?;
    if let Some(rows) = &rows {
        text("--rows", rows)?;
    }
    if let (Some(from), Some(to)) = (from, to_ds)
        && from > to
    {
        return Err(Failure::usage(format!("there is no day from {from} to {to}"), "turn --from and --to-ds round"));
    }
    let columns = match (texts("--columns", columns)?, texts("--except", except)?) {
        (Some(only), _) => Columns::Only(only),
        (None, Some(except)) => Columns::Except(except),
        (None, None) => Columns::All,
    };
    let grant = Grant {
        tables: TablePattern::new(table),
        columns,
        days: Days { from, to: to_ds },
        event_types: texts("--event-types", event_types)?,
        rows,
    };
    Ok((to, grant))
}

async fn add(app: &App, accounts: &Accounts, args: AddArgs) -> anyhow::Result<()> {
    let (to, grant) = resolved(args)?;
    let checked = app.engine().await?.check_grant(grant.clone()).await?;
    fits(app, &grant, &checked).await?;
    let row = accounts.grant(to, grant).await?;
    if app.out.json {
        return app.out.document(&grant_json(&row));
    }
    app.note(format_args!("grant {} to {}: {}", row.id, row.to, words(&row.grant)));
    for note in notes(accounts, &row, &checked).await? {
        app.note(note);
    }
    Ok(())
}

/// Refuses a grant on one table that would show nothing of it.
async fn fits(app: &App, grant: &Grant, checked: &GrantCheck) -> anyhow::Result<()> {
    let Some(name) = grant.tables.exact() else { return Ok(()) };
    if let Some((_, error)) = checked.unfitting.first() {
        let failure = Failure::new(error.kind(), error.code(), format!("the grant does not fit `{name}`: {error}"));
        return Err(match error.hint() {
            Some(hint) => failure.hint(hint).into(),
            None => failure.into(),
        });
    }
    if !checked.fitting.is_empty() {
        return Ok(());
    }
    if let Some(base) = name.strip_suffix("_latest")
        && app.lakes().await?.catalog().has(base).await?
    {
        let hint = format!("grant `{base}`: {name} goes with it");
        return Err(Failure::usage(format!("`{name}` is a part of `{base}`, and no table"), hint).into());
    }
    Ok(())
}

/// What somebody who gives a grant may not expect.
async fn notes(accounts: &Accounts, row: &GrantRow, checked: &GrantCheck) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    let pattern = row.grant.tables.as_str();
    if checked.fitting.is_empty() && checked.unfitting.is_empty() {
        notes.push(format!("there is no table `{pattern}` yet; headworks tables list shows all"));
    }
    for (name, error) in &checked.unfitting {
        notes.push(format!("it shows nothing of `{name}`: {error}"));
    }
    let users = accounts.users().await?;
    let role = match &row.to {
        Grantee::Role(role) => Some(*role),
        Grantee::User(name) => users.iter().find(|user| user.name == *name).map(|user| user.role),
    };
    if let Some(role) = role.filter(|role| role.reads_everything()) {
        notes.push(format!("it changes nothing now: an {role} reads everything"));
    }
    let has = |other: &Grantee| *other == row.to || role.is_some_and(|role| *other == Grantee::Role(role));
    let everything = Grant::of(TablePattern::new("*"));
    for other in accounts.grants().await?.iter().filter(|other| other.id != row.id && has(&other.to)) {
        if other.grant == everything {
            notes.push(format!(
                "it restricts nothing yet, since grant {} shows {} everything: headworks grants remove {}",
                other.id, other.to, other.id
            ));
        }
    }
    Ok(notes)
}

async fn list(app: &App, accounts: &Accounts, args: ListArgs) -> anyhow::Result<()> {
    let mut grants = accounts.grants().await?;
    grants.retain(|row| args.to.as_ref().is_none_or(|to| row.to == *to));
    if app.out.json {
        return app.out.document(&json!({"grants": grants.iter().map(grant_json).collect::<Vec<_>>()}));
    }
    if grants.is_empty() {
        app.note("no such grants: analysts and viewers read what headworks grants add lets them");
        return Ok(());
    }
    let columns = [("grant", Align::Right), ("to", Align::Left), ("what", Align::Left)];
    let mut table = Table::new(columns);
    for row in grants {
        table.row([row.id.to_string(), row.to.to_string(), words(&row.grant)]);
    }
    app.out.table(&table)
}

/// A grant as a sentence's end.
fn words(grant: &Grant) -> String {
    let list = |texts: &BTreeSet<String>| texts.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut words = grant.tables.as_str().to_owned();
    match &grant.columns {
        Columns::All => {}
        Columns::Only(columns) => words.push_str(&format!(", columns {}", list(columns))),
        Columns::Except(columns) => words.push_str(&format!(", all columns but {}", list(columns))),
    }
    if let Some(from) = grant.days.from {
        words.push_str(&format!(", from {from}"));
    }
    if let Some(to) = grant.days.to {
        words.push_str(&format!(", to {to}"));
    }
    if let Some(types) = &grant.event_types {
        words.push_str(&format!(", event types {}", list(types)));
    }
    if let Some(rows) = &grant.rows {
        words.push_str(&format!(", rows where {rows}"));
    }
    words
}

fn grant_json(row: &GrantRow) -> Value {
    let GrantRow { id, to, grant, created_at } = row;
    let (only, except) = match &grant.columns {
        Columns::All => (None, None),
        Columns::Only(columns) => (Some(columns), None),
        Columns::Except(columns) => (None, Some(columns)),
    };
    json!({
        "id": id,
        "to": to.to_string(),
        "table": grant.tables.as_str(),
        "columns": only,
        "except": except,
        "from": grant.days.from,
        "to_ds": grant.days.to,
        "event_types": grant.event_types,
        "rows": grant.rows,
        "created_at": created_at,
    })
}
