//! Users, tokens and grants on both databases: who signs in, what they read, when a change counts.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use headworks_domain::{
    AccountRole, Clock, Columns, Days, ErrorKind, Fault, Grant, Right, Scope, Secret, TablePattern, UserName,
};
use headworks_meta::{Accounts, Error, GRANTS_MAX, Grantee, NewToken};
use headworks_store::values;

use crate::{on_both, world::World};

on_both!(
    users_sign_in_with_their_password_only,
    wrong_passwords_are_slowed_and_not_told_apart,
    tokens_sign_in_until_they_end,
    tokens_have_the_rights_of_their_scopes,
    the_wire_proves_passwords_and_tokens,
    grants_are_of_users_and_roles,
    changes_count_everywhere_within_a_second,
    the_last_admin_stays,
    the_first_start_makes_one_admin,
    nothing_secret_is_kept_or_shown,
    accounts_have_bounds,
);

const PASSWORD: &str = "correct horse battery";

fn name(name: &str) -> UserName {
    name.parse().unwrap()
}

fn secret() -> Secret {
    Secret::new(PASSWORD)
}

fn from(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

async fn accounts(world: &World) -> Accounts {
    Accounts::open(world.store.clone(), world.clock.clone()).await.unwrap()
}

async fn with_ann(world: &World) -> Accounts {
    let accounts = accounts(world).await;
    accounts.create_user(&name("ann"), AccountRole::Analyst, Some(&secret())).await.unwrap();
    accounts
}

fn token(owner: &str, scopes: &[Scope]) -> NewToken {
    let scopes = scopes.iter().copied().collect();
    NewToken { owner: name(owner), name: "of a test".to_owned(), scopes, expires_at: None }
}

async fn users_sign_in_with_their_password_only(world: World) {
    let accounts = with_ann(&world).await;
    let account = accounts.authenticate_password("ann", &secret(), from(1)).await.unwrap();
    assert_eq!((account.name, account.role, account.scopes), (name("ann"), AccountRole::Analyst, None));
    for (user, password) in
        [("ann", "x"), ("ann", ""), ("Ann", PASSWORD), ("bob", PASSWORD), ("", ""), ("ann\0", PASSWORD)]
    {
        let failed = accounts.authenticate_password(user, &Secret::new(password), from(2)).await;
        assert!(matches!(failed, Err(Error::SignIn)), "{user} {password}: {failed:?}");
    }
    let session = accounts.account("ann").await.unwrap().session;
    assert_eq!(accounts.account(&session).await.unwrap().name, name("ann"));
    assert!(
        accounts.scram_verifier(&session).await.unwrap() != accounts.scram_verifier("ann").await.unwrap(),
        "no name"
    );
    accounts.set_role(&name("ann"), AccountRole::Viewer).await.unwrap();
    assert_eq!(accounts.account(&session).await.unwrap().role, AccountRole::Viewer, "goes on with another role");
    accounts.set_password(&name("ann"), &Secret::new("another one to type")).await.unwrap();
    assert!(matches!(accounts.account(&session).await, Err(Error::SignIn)), "ends with the password");
    assert!(accounts.account("ann:").await.is_err());
    assert!(accounts.authenticate_password("ann", &secret(), from(1)).await.is_err());
    accounts.set_password(&name("ann"), &secret()).await.unwrap();
    accounts.create_user(&name("boss"), AccountRole::Admin, None).await.unwrap();
    assert!(accounts.authenticate_password("boss", &Secret::new(""), from(1)).await.is_err(), "has no password");
    accounts.set_enabled(&name("ann"), false).await.unwrap();
    assert!(matches!(accounts.authenticate_password("ann", &secret(), from(1)).await, Err(Error::SignIn)));
    assert!(accounts.account("ann").await.is_err());
    accounts.set_enabled(&name("ann"), true).await.unwrap();
    assert!(accounts.authenticate_password("ann", &secret(), from(1)).await.is_ok());
    let again = accounts.create_user(&name("ann"), AccountRole::Admin, Some(&secret())).await.unwrap_err();
    assert_eq!(again.to_string(), "there is a user `ann` already");
    assert!(matches!(
        accounts.create_user(&name("carl"), AccountRole::Viewer, Some(&Secret::new("carl"))).await,
        Err(Error::WeakPassword { .. })
    ));
    let unknown = accounts.set_role(&name("anne"), AccountRole::Admin).await.unwrap_err();
    assert_eq!(unknown.hint().as_deref(), Some("did you mean `ann`?"));
    let users = accounts.users().await.unwrap();
    assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["ann", "boss"]);
    assert_eq!((users[0].has_password, users[1].has_password), (true, false));
}

async fn wrong_passwords_are_slowed_and_not_told_apart(world: World) {
    let accounts = with_ann(&world).await;
    let wrong = Secret::new("not the password");
    let answers = async |user: &str, from: IpAddr| {
        let mut answers = Vec::new();
        for _ in 0..5 {
            answers.push(accounts.authenticate_password(user, &wrong, from).await.unwrap_err().to_string());
        }
        answers
    };
    let known = answers("ann", from(1)).await;
    assert_eq!(known, answers("nobody", from(1)).await);
    let told = "the user name, password or token is wrong";
    assert_eq!(known, [told, told, told, told, "too many wrong passwords: the next try is in 1 s"]);
    // The right one has to wait as well, or it would be told apart; from elsewhere it has not.
    assert!(matches!(accounts.authenticate_password("ann", &secret(), from(1)).await, Err(Error::Slowed { .. })));
    assert!(matches!(accounts.may_try("ann", from(1)), Err(Error::Slowed { seconds: 1 })));
    assert!(accounts.authenticate_password("ann", &secret(), from(2)).await.is_ok());
    world.clock.forward(1);
    assert!(accounts.authenticate_password("ann", &secret(), from(1)).await.is_ok());
    assert!(matches!(accounts.authenticate_password("ann", &wrong, from(1)).await, Err(Error::SignIn)));

    // The best of several, taken by turns, which a busy machine disturbs least.
    let (mut known, mut unknown) = (Duration::MAX, Duration::MAX);
    for n in 10..18 {
        for (user, best) in [("ann", &mut known), ("nobody at all", &mut unknown)] {
            let start = Instant::now();
            accounts.authenticate_password(user, &wrong, from(n)).await.unwrap_err();
            *best = start.elapsed().min(*best);
        }
    }
    assert!(unknown * 3 > known && known * 3 > unknown, "{known:?} {unknown:?}");
}

async fn tokens_sign_in_until_they_end(world: World) {
    let accounts = with_ann(&world).await;
    let ends = Some(world.clock.now() + TimeDelta::days(90));
    let (text, row) =
        accounts.create_token(NewToken { expires_at: ends, ..token("ann", &[Scope::Query]) }).await.unwrap();
    assert!(text.expose().starts_with(&format!("hw_{}_", row.id)), "{}", row.id);
    let account = accounts.authenticate_token(text.expose()).await.unwrap();
    assert_eq!((account.name, account.scopes), (name("ann"), Some(BTreeSet::from([Scope::Query]))));
    for bad in ["", "hw_", PASSWORD, &text.expose()[1..], &text.expose().to_uppercase()] {
        assert!(matches!(accounts.authenticate_token(bad).await, Err(Error::SignIn)), "{bad}");
    }
    // The use is written down, beside whoever uses it.
    let used = async || accounts.tokens().await.unwrap()[0].last_used_at;
    for _ in 0..500 {
        if world.store.row("select 1 from hw_token where last_used_at is not null", &[]).await.unwrap().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    accounts.create_user(&name("carl"), AccountRole::Viewer, None).await.unwrap();
    assert_eq!(used().await, Some(world.clock.now()));

    world.clock.forward(90 * 86_400 - 1);
    assert!(accounts.authenticate_token(text.expose()).await.is_ok());
    world.clock.forward(1);
    assert!(matches!(accounts.authenticate_token(text.expose()).await, Err(Error::SignIn)));
    assert!(accounts.account(&row.login()).await.is_err());

    let (text, row) = accounts.create_token(token("ann", &[Scope::Query, Scope::Jobs])).await.unwrap();
    assert!(accounts.authenticate_token(text.expose()).await.is_ok());
    accounts.set_enabled(&name("ann"), false).await.unwrap();
    assert!(accounts.authenticate_token(text.expose()).await.is_err(), "its owner is disabled");
    accounts.set_enabled(&name("ann"), true).await.unwrap();
    assert!(accounts.authenticate_token(text.expose()).await.is_ok());
    accounts.revoke_token(&row.login()).await.unwrap();
    assert!(accounts.authenticate_token(text.expose()).await.is_err());
    assert!(matches!(accounts.revoke_token(&row.id).await, Err(Error::UnknownToken { .. })));
    assert!(matches!(accounts.create_token(token("nobody", &[Scope::Query])).await, Err(Error::UnknownUser { .. })));
}

async fn tokens_have_the_rights_of_their_scopes(world: World) {
    let accounts = accounts(&world).await;
    accounts.create_user(&name("ann"), AccountRole::Author, Some(&secret())).await.unwrap();
    let rights = async |scopes: &[Scope]| {
        let (text, _) = accounts.create_token(token("ann", scopes)).await.unwrap();
        let account = accounts.authenticate_token(text.expose()).await.unwrap();
        let all = [Right::ReadDashboards, Right::Query, Right::ReadJobs, Right::RunJobs, Right::ManageAccounts];
        all.map(|right| account.may(right))
    };
    assert_eq!(rights(&[Scope::Query]).await, [true, true, false, false, false]);
    assert_eq!(rights(&[Scope::Jobs]).await, [false, false, true, true, false]);
    assert_eq!(rights(&[Scope::Query, Scope::Jobs]).await, [true, true, true, true, false]);
    assert_eq!(rights(&[Scope::Admin]).await, [true, true, true, true, false], "no more than its owner");
}

async fn the_wire_proves_passwords_and_tokens(world: World) {
    let accounts = with_ann(&world).await;
    let real = accounts.scram_verifier("ann").await.unwrap();
    assert_eq!(real, accounts.scram_verifier("ann").await.unwrap());
    let mock = accounts.scram_verifier("nobody").await.unwrap();
    assert_eq!((mock.iterations, mock.salt.len()), (real.iterations, real.salt.len()));
    // Another process, and another start, have the same salt for who is not there; another database has not.
    let other = self::accounts(&world).await;
    assert_eq!(other.scram_verifier("nobody").await.unwrap(), mock);
    assert_ne!(self::accounts(&World::sqlite().await).await.scram_verifier("nobody").await.unwrap().salt, mock.salt);

    let (_, row) = accounts.create_token(token("ann", &[Scope::Query])).await.unwrap();
    let of_token = accounts.scram_verifier(&row.login()).await.unwrap();
    let account = accounts.account(&row.login()).await.unwrap();
    assert_eq!((account.name, account.scopes), (name("ann"), Some(BTreeSet::from([Scope::Query]))));
    accounts.set_enabled(&name("ann"), false).await.unwrap();
    let disabled = accounts.scram_verifier("ann").await.unwrap();
    assert_ne!(disabled, real);
    assert_eq!(disabled, accounts.scram_verifier("ann").await.unwrap());
    assert_ne!(accounts.scram_verifier(&row.login()).await.unwrap(), of_token);
    assert!(accounts.account(&row.login()).await.is_err());
}

async fn grants_are_of_users_and_roles(world: World) {
    let accounts = with_ann(&world).await;
    accounts.create_user(&name("bob"), AccountRole::Viewer, None).await.unwrap();
    accounts.create_user(&name("boss"), AccountRole::Admin, None).await.unwrap();
    let hides = async |user: &str, table: &str| accounts.account(user).await.unwrap().access.hides(table);
    assert!(!hides("ann", "t").await && !hides("bob", "t").await, "what every project begins with");
    for row in accounts.grants().await.unwrap() {
        assert_eq!((row.grant.tables.as_str(), row.created_at), ("*", None));
        accounts.revoke_grant(row.id).await.unwrap();
    }
    assert!(hides("ann", "t").await && hides("bob", "t").await && !hides("boss", "t").await);

    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    let full = Grant {
        tables: TablePattern::new("events_*"),
        columns: Columns::Except(texts(&["e\"mail", "日本", ""])),
        days: Days { from: Some("2013-01-01".parse().unwrap()), to: Some("2013-02-01".parse().unwrap()) },
        event_types: Some(texts(&["view", "o'clock"])),
        rows: Some("owner = current_user and note <> 'it''s \"so\"'".to_owned()),
    };
    let only = Grant { columns: Columns::Only(texts(&["a"])), ..Grant::of(TablePattern::new("t")) };
    let first = accounts.grant(Grantee::User(name("ann")), full.clone()).await.unwrap();
    let second = accounts.grant(Grantee::Role(AccountRole::Viewer), only.clone()).await.unwrap();
    assert!(second.id > first.id);
    let kept = self::accounts(&world).await.grants().await.unwrap();
    assert_eq!(kept, [first.clone(), second.clone()], "as they were given, from the database");
    let access = accounts.account("ann").await.unwrap().access;
    assert_eq!(access.on("events_clicks").unwrap().collect::<Vec<_>>(), [&full]);
    assert!(access.hides("t"));
    assert!(!hides("bob", "t").await && hides("bob", "events_clicks").await);
    accounts.set_role(&name("ann"), AccountRole::Viewer).await.unwrap();
    assert!(!hides("ann", "t").await, "by the new role");
    accounts.revoke_grant(first.id).await.unwrap();
    assert!(hides("ann", "events_clicks").await);
    assert!(matches!(accounts.revoke_grant(first.id).await, Err(Error::UnknownGrant { .. })));
    accounts.revoke_grant(second.id).await.unwrap();
    let again = accounts.grant(Grantee::User(name("ann")), only).await.unwrap();
    assert!(again.id > second.id, "a number is not used again");
    let nobody = accounts.grant(Grantee::User(name("nobody")), full).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NotFound);
}

async fn changes_count_everywhere_within_a_second(world: World) {
    let (here, there) = (with_ann(&world).await, accounts(&world).await);
    let (text, row) = here.create_token(token("ann", &[Scope::Query])).await.unwrap();
    assert!(here.authenticate_token(text.expose()).await.is_ok(), "at once where it was made");
    let is_known = async |accounts: &Accounts| accounts.authenticate_token(text.expose()).await.is_ok();
    let within_a_second = async |expected: bool| {
        let start = Instant::now();
        while is_known(&there).await != expected {
            assert!(start.elapsed() < Duration::from_secs(1), "not {expected} after a second");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_a_second(true).await;
    // From memory: the database is not asked for each.
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        for _ in 0..200 {
            assert!(is_known(&there).await);
        }
        best = best.min(start.elapsed() / 200);
    }
    assert!(best < Duration::from_micros(25), "{best:?}");
    here.revoke_token(&row.id).await.unwrap();
    assert!(!is_known(&here).await, "at once where it was revoked");
    within_a_second(false).await;
}

async fn the_last_admin_stays(world: World) {
    let accounts = with_ann(&world).await;
    accounts.create_user(&name("boss"), AccountRole::Admin, None).await.unwrap();
    let refused = accounts.set_enabled(&name("boss"), false).await.unwrap_err();
    assert_eq!(refused.to_string(), "`boss` is the last admin who can sign in");
    assert!(matches!(accounts.set_role(&name("boss"), AccountRole::Author).await, Err(Error::LastAdmin { .. })));
    assert_eq!(accounts.account("boss").await.unwrap().role, AccountRole::Admin);
    accounts.create_user(&name("vice"), AccountRole::Admin, None).await.unwrap();
    accounts.set_enabled(&name("vice"), false).await.unwrap();
    assert!(accounts.set_enabled(&name("boss"), false).await.is_err(), "a disabled one does not count");
    accounts.set_enabled(&name("vice"), true).await.unwrap();
    accounts.set_enabled(&name("boss"), false).await.unwrap();
}

async fn the_first_start_makes_one_admin(world: World) {
    let (one, other) = (accounts(&world).await, accounts(&world).await);
    let made = tokio::join!(one.first_admin(), other.first_admin());
    let made: Vec<_> = [made.0.unwrap(), made.1.unwrap()].into_iter().flatten().collect();
    assert_eq!(made.len(), 1, "two that start at once");
    let (user, password) = &made[0];
    assert_eq!(one.authenticate_password(user.as_str(), password, from(1)).await.unwrap().role, AccountRole::Admin);
    assert!(one.first_admin().await.unwrap().is_none());
    assert!(self::accounts(&world).await.first_admin().await.unwrap().is_none());
}

async fn nothing_secret_is_kept_or_shown(world: World) {
    let accounts = with_ann(&world).await;
    let (text, row) = accounts.create_token(token("ann", &[Scope::Query])).await.unwrap();
    let account = accounts.authenticate_token(text.expose()).await.unwrap();
    let shown =
        format!("{accounts:?} {account:?} {row:?} {text:?} {:?}", accounts.scram_verifier("ann").await.unwrap());
    let mut kept = String::new();
    for table in ["hw_user", "hw_token", "hw_grant", "hw_account_state"] {
        kept.push_str(&format!("{:?}", world.store.rows(&format!("select * from {table}"), &[]).await.unwrap()));
    }
    let key = text.expose().split_once('_').unwrap().1.split_once('_').unwrap().1;
    for secret in [PASSWORD, key] {
        assert!(!shown.contains(secret) && !kept.contains(secret), "{secret}");
    }
    assert!(kept.contains("$argon2id$") && kept.contains("SCRAM-SHA-256$4096:"));
}

async fn accounts_have_bounds(world: World) {
    let accounts = with_ann(&world).await;
    let to = || Grantee::User(name("ann"));
    for id in 0..GRANTS_MAX - 1 {
        let sql = "insert into hw_grant (id, to_user, tables) values ($1, 'ann', 't')";
        world
            .store
            .write(move |tx| Box::pin(async move { tx.execute(sql, &values![1_000 + id]).await.map_err(Error::from) }))
            .await
            .unwrap();
    }
    accounts.grant(to(), Grant::of(TablePattern::new("t"))).await.unwrap();
    let refused = accounts.grant(to(), Grant::of(TablePattern::new("t"))).await.unwrap_err();
    assert_eq!(refused.to_string(), "there are 200 grants to one user or role already, and no more fit");
    accounts.grant(Grantee::Role(AccountRole::Viewer), Grant::of(TablePattern::new("t"))).await.unwrap();
}
