use std::{collections::BTreeSet, process::ExitCode};

use chrono::TimeDelta;
use headworks_domain::{Scope, UserName};
use headworks_flow::Span;
use headworks_meta::{Accounts, NewToken, TokenRow};
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::{DONE, Failure},
    output::{Align, Table, ago, shown},
};

/// Make and revoke the tokens with which programs sign in
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(CreateArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// Make a token; it is shown once, on stdout
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks tokens create --user ann --name notebook
  headworks tokens create --user superset --expires never > superset.token
  headworks tokens create --user ci --scope jobs --scope query --expires 30d

Over HTTP it is sent as `Authorization: Bearer TOKEN`. For clients of PostgreSQL the user name is token_ID, and the token the
password.")]
pub(crate) struct CreateArgs {
    /// Whose it is: it reads what they read
    #[arg(long)]
    user: UserName,
    /// What to call it, so that its owner knows it in lists
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// What it is for: query, jobs or admin; may be given more than once
    #[arg(long = "scope", value_name = "SCOPE", default_value = "query")]
    scopes: Vec<Scope>,
    /// How long it lasts, or `never`
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = lasting)]
    expires: Lasting,
}

/// List the tokens, newest first; never their text
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Those of this user only
    #[arg(long)]
    user: Option<UserName>,
}

/// End a token, at once
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// Its id, as tokens list shows it
    id: String,
}

/// How long a token lasts.
#[derive(Debug, Clone, Copy)]
enum Lasting {
    Never,
    Time(Span),
}

fn lasting(text: &str) -> Result<Lasting, String> {
    match text {
        "never" => Ok(Lasting::Never),
        text => match text.parse::<Span>() {
            Ok(span) if !span.duration().is_zero() => Ok(Lasting::Time(span)),
            Ok(_) => Err("it would never be good; write `90d`, or `never` for one without an end".to_owned()),
            Err(error) => Err(format!("{error}, or `never`")),
        },
    }
}

/// The longest name of a token.
const NAME_CHARS_MAX: usize = 100;

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    let accounts = app.accounts().await?;
    match command {
        Command::Create(args) => create(app, accounts, args).await?,
        Command::List(args) => list(app, accounts, args).await?,
        Command::Revoke(RevokeArgs { id }) => {
            accounts.revoke_token(&id).await?;
            match app.out.json {
                true => app.out.document(&json!({"revoked": id}))?,
                false => app.note(format_args!("token {id} is no good any more")),
            }
        }
    }
    Ok(ExitCode::from(DONE))
}

async fn create(app: &App, accounts: &Accounts, args: CreateArgs) -> anyhow::Result<()> {
    let CreateArgs { user: owner, name, scopes, expires } = args;
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        let hint = format!("give it a name of one line and at most {NAME_CHARS_MAX} characters");
        return Err(Failure::usage("the token cannot be called that", hint).into());
    }
    let expires_at = match expires {
        Lasting::Never => None,
        Lasting::Time(span) => {
            let span = TimeDelta::from_std(span.duration());
            span.ok().and_then(|span| app.clock.now().checked_add_signed(span))
        }
    };
    let scopes: BTreeSet<Scope> = scopes.into_iter().collect();
    let (text, row) = accounts.create_token(NewToken { owner, name, scopes, expires_at }).await?;
    if app.out.json {
        let mut document = token_json(&row);
        document["token"] = text.expose().into();
        return app.out.document(&document);
    }
    let until = row.expires_at.map_or_else(|| "without an end".to_owned(), |end| format!("until {}", shown(end)));
    app.note(format_args!(
        "token {} of {}, for {}, {until}; it is shown this once (PostgreSQL user name: {}):",
        row.id,
        row.owner,
        words(&row.scopes),
        row.login()
    ));
    app.out.line(text.expose())
}

async fn list(app: &App, accounts: &Accounts, args: ListArgs) -> anyhow::Result<()> {
    let mut tokens = accounts.tokens().await?;
    tokens.retain(|token| args.user.as_ref().is_none_or(|user| token.owner == *user));
    if app.out.json {
        return app.out.document(&json!({"tokens": tokens.iter().map(token_json).collect::<Vec<_>>()}));
    }
    if tokens.is_empty() {
        app.note("no such tokens: headworks tokens create --user NAME makes one");
        return Ok(());
    }
    let columns = ["id", "user", "name", "for", "made", "expires", "last used"];
    let mut table = Table::new(columns.map(|column| (column, Align::Left)));
    let now = app.clock.now();
    for token in tokens {
        let expires = match token.expires_at {
            None => "never".to_owned(),
            Some(end) if end <= now => "expired".to_owned(),
            Some(end) => shown(end),
        };
        table.row([
            token.id,
            token.owner.to_string(),
            token.name,
            words(&token.scopes),
            ago(token.created_at, now),
            expires,
            token.last_used_at.map_or_else(|| "never".to_owned(), |at| ago(at, now)),
        ]);
    }
    app.out.table(&table)
}

fn words(scopes: &BTreeSet<Scope>) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", ")
}

fn token_json(token: &TokenRow) -> Value {
    json!({
        "id": token.id,
        "login": token.login(),
        "user": token.owner,
        "name": token.name,
        "scopes": token.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
    })
}
