use std::{
    io::{self, Read},
    process::ExitCode,
};

use anyhow::Context;
use headworks_domain::{AccountRole, Secret, UserName};
use headworks_meta::{Accounts, PASSWORD_BYTES_MAX};
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::{DONE, Failure},
    output::{Align, Table, ago},
};

/// Make and change the people and programs that may sign in
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(CreateArgs),
    List(ListArgs),
    Passwd(PasswdArgs),
    Role(RoleArgs),
    /// Let a user sign in no more, nor their tokens
    Disable(NameArg),
    /// Let a user sign in again
    Enable(NameArg),
}

/// Make a user; without --password-stdin a password is made up and shown once
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks users create ann --role analyst
  headworks users create superset --role viewer --no-password    signs in with tokens only
  headworks users create bob --role author --password-stdin < password.txt

Roles: admin looks after accounts and all the rest, author writes and runs jobs, analyst asks in SQL, viewer looks at dashboards.
Admins and authors read everything; analysts and viewers what they are granted.")]
pub(crate) struct CreateArgs {
    /// Its name: lowercase letters, digits, `_`, `-`, `.`, `@`
    name: UserName,
    /// What it may do: admin, author, analyst or viewer
    #[arg(long)]
    role: AccountRole,
    #[command(flatten)]
    password: PasswordArgs,
    /// Make none: the user signs in with tokens only
    #[arg(long, conflicts_with = "password_stdin")]
    no_password: bool,
}

/// List the users
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {}

/// Give a user another password; without --password-stdin one is made up and shown once
#[derive(Debug, clap::Args)]
pub(crate) struct PasswdArgs {
    /// The user
    name: UserName,
    #[command(flatten)]
    password: PasswordArgs,
}

#[derive(Debug, clap::Args)]
struct PasswordArgs {
    /// Read the password from the first line of stdin
    #[arg(long)]
    password_stdin: bool,
}

/// Give a user another role
#[derive(Debug, clap::Args)]
pub(crate) struct RoleArgs {
    /// The user
    name: UserName,
    /// admin, author, analyst or viewer
    role: AccountRole,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NameArg {
    /// The user
    name: UserName,
}

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    let accounts = app.accounts().await?;
    match command {
        Command::Create(args) => create(app, accounts, args).await?,
        Command::List(_) => list(app, accounts).await?,
        Command::Passwd(PasswdArgs { name, password }) => {
            let (password, is_made) = password.read(accounts)?;
            accounts.set_password(&name, &password).await?;
            told(app, &format!("{name} has another password"), json!({"user": name}), is_made.then_some(&password))?;
        }
        Command::Role(RoleArgs { name, role }) => {
            accounts.set_role(&name, role).await?;
            told(app, &format!("{name} is {role} now"), json!({"user": name, "role": role.as_str()}), None)?;
        }
        Command::Disable(NameArg { name }) => {
            accounts.set_enabled(&name, false).await?;
            let text = format!("{name} may not sign in any more, and neither may their tokens");
            told(app, &text, json!({"user": name, "enabled": false}), None)?;
        }
        Command::Enable(NameArg { name }) => {
            accounts.set_enabled(&name, true).await?;
            told(app, &format!("{name} may sign in"), json!({"user": name, "enabled": true}), None)?;
        }
    }
    Ok(ExitCode::from(DONE))
}

async fn create(app: &App, accounts: &Accounts, args: CreateArgs) -> anyhow::Result<()> {
    let CreateArgs { name, role, password, no_password } = args;
    let document = json!({"user": name, "role": role.as_str()});
    if no_password {
        accounts.create_user(&name, role, None).await?;
        let text = format!("{name} is there, as {role}; a token lets them in: headworks tokens create --user {name}");
        return told(app, &text, document, None);
    }
    let (password, is_made) = password.read(accounts)?;
    accounts.create_user(&name, role, Some(&password)).await?;
    told(app, &format!("{name} is there, as {role}"), document, is_made.then_some(&password))
}

impl PasswordArgs {
    /// The password, and whether it is one that we made up.
    fn read(&self, accounts: &Accounts) -> anyhow::Result<(Secret, bool)> {
        if !self.password_stdin {
            return Ok((accounts.generated_password()?, true));
        }
        let mut text = String::new();
        let most = PASSWORD_BYTES_MAX as u64 + 2;
        io::stdin().lock().take(most).read_to_string(&mut text).context("cannot read the password from stdin")?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(Failure::usage("there is no password on stdin", "give one on its first line").into());
        }
        Ok((Secret::new(line), false))
    }
}

/// Says what was done; a password that was made up is data, the rest is not.
fn told(app: &App, text: &str, mut document: Value, password: Option<&Secret>) -> anyhow::Result<()> {
    if app.out.json {
        if let Some(password) = password {
            document["password"] = password.expose().into();
        }
        return app.out.document(&document);
    }
    match password {
        None => app.note(text),
        Some(password) => {
            app.note(format_args!("{text}; the password is shown this once:"));
            app.out.line(password.expose())?;
        }
    }
    Ok(())
}

async fn list(app: &App, accounts: &Accounts) -> anyhow::Result<()> {
    let users = accounts.users().await?;
    if app.out.json {
        let users: Vec<Value> = users
            .iter()
            .map(|user| {
                json!({
                    "user": user.name,
                    "role": user.role.as_str(),
                    "enabled": user.is_enabled,
                    "has_password": user.has_password,
                    "created_at": user.created_at,
                })
            })
            .collect();
        return app.out.document(&json!({"users": users}));
    }
    if users.is_empty() {
        app.note("no users yet: headworks users create NAME --role admin makes one");
        return Ok(());
    }
    let columns = ["user", "role", "may sign in", "password", "made"];
    let mut table = Table::new(columns.map(|column| (column, Align::Left)));
    let now = app.clock.now();
    for user in users {
        table.row([
            user.name.to_string(),
            user.role.to_string(),
            if user.is_enabled { "yes" } else { "no" }.to_owned(),
            if user.has_password { "yes" } else { "tokens only" }.to_owned(),
            ago(user.created_at, now),
        ]);
    }
    app.out.table(&table)
}
