//! The doors of a process: health checks, the HTTP API and Flight SQL on one port, PostgreSQL on its own, and who may pass.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context;
use async_trait::async_trait;
use axum::{
    Router,
    extract::{ConnectInfo, Request},
    middleware::{self, Next},
    response::Response,
};
use headworks_api::{Api, Peer, Tls};
use headworks_domain::{ErrorKind, Fault, Right};
use headworks_engine::{Caller, Credentials, KeptOptions, KeptQueries, SignIn, SignInError, Signed};
use headworks_meta::{Account, Accounts, AskedLog, Error};
use headworks_wire::{flight, postgres};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use super::{
    asked::{self, Pen, Writing},
    health::{self, Health},
};
use crate::{app::App, fail::Failure};

/// Open ports, and what is behind them.
pub(super) struct Doors {
    http: TcpListener,
    certificate: Option<Certificate>,
    routes: Router,
    /// Of a process that answers queries.
    queries: Option<Queries>,
}

/// What a process that answers queries has more.
struct Queries {
    postgres: Option<(postgres::Service, TcpListener)>,
    /// Writes down who asked what.
    pen: Pen,
}

impl Doors {
    /// Opens what every process has: health checks and metrics, at `listen` instead of the setting. Errors: the port is taken.
    pub(super) async fn open(app: &App, listen: Option<String>, health: &Arc<Health>) -> anyhow::Result<Self> {
        let listen = match listen {
            Some(listen) => listen,
            None => app.config()?.server.listen.clone(),
        };
        let http = health::bind(&listen, "--listen or server.listen").await?;
        let certificate = certificate(app)?;
        Ok(Self { http, certificate, routes: health::routes(Arc::clone(health)), queries: None })
    }

    /// Answers queries too. Errors: the port is taken.
    pub(super) async fn with_queries(mut self, app: &App, health: &Health) -> anyhow::Result<Self> {
        let log = AskedLog::open(app.store().await?.clone()).await?;
        let (ears, pen) = asked::pair(log, app.config()?.server.slow_query.duration());
        app.serves_queries(Arc::new(ears));
        self.routes = self.routes.merge(queries(app).await?);
        health.watch(app.engine().await?.clone());
        let tls = self.certificate.as_ref().map(|both| both.postgres.clone());
        self.queries = Some(Queries { postgres: postgres(app, tls).await?, pen });
        Ok(self)
    }

    /// Answers until `stop` turns true. Gives who writes down what is asked, to be finished after the parts have ended.
    pub(super) fn serve(self, parts: &mut JoinSet<()>, stop: &watch::Receiver<bool>) -> Option<Writing> {
        let tls = self.certificate.map(|both| both.http);
        parts.spawn(serve(self.http, tls, self.routes, stop.clone()));
        let Queries { postgres, pen } = self.queries?;
        if let Some((service, listener)) = postgres {
            parts.spawn(serve_postgres(service, listener, stop.clone()));
        }
        Some(pen.start())
    }

    /// Where they are, in words.
    pub(super) fn addresses(&self) -> anyhow::Result<String> {
        let http = self.http.local_addr()?;
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        let mut told = format!("health on {scheme}://{http}/healthz");
        if let Some(Queries { postgres, .. }) = &self.queries {
            told += &format!(", queries on {scheme}://{http}");
            if let Some((_, listener)) = postgres {
                told += &format!(" and postgres://{}", listener.local_addr()?);
            }
        }
        Ok(told)
    }
}

/// The server's certificate for its two ports.
struct Certificate {
    http: Tls,
    postgres: postgres::Tls,
}

/// The certificate that the settings name, if they do. Errors: it cannot be read or used.
fn certificate(app: &App) -> anyhow::Result<Option<Certificate>> {
    let server = &app.config()?.server;
    let (Some(certificate), Some(key)) = (&server.tls_certificate, &server.tls_key) else { return Ok(None) };
    let read = |path: &str| {
        let path = app.root()?.join(path);
        std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))
    };
    let (certificate, key) = (read(certificate)?, read(key)?);
    let wrong = |error: &dyn std::fmt::Display| {
        let message = format!("the server's certificate cannot be used: {error}");
        Failure::new(ErrorKind::Invalid, "SERVE_TLS", message)
            .hint("server.tls_certificate and server.tls_key name PEM files that belong together")
    };
    Ok(Some(Certificate {
        http: Tls::from_pem(&certificate, &key).map_err(|error| wrong(&error.0))?,
        postgres: postgres::Tls::from_pem(&certificate, &key).map_err(|error| wrong(&error))?,
    }))
}

/// The routes that ask the lake.
async fn queries(app: &App) -> anyhow::Result<Router> {
    let engine = app.engine().await?.clone();
    let server = &app.config()?.server;
    let kept = KeptOptions {
        keep: server.results_keep.duration(),
        bytes_max: server.results_bytes_max.bytes(),
        ..KeptOptions::new(app.spill_dir()?.join("kept"))
    };
    let kept = KeptQueries::new(engine.clone(), kept)?;
    let gate: Arc<dyn SignIn> = Arc::new(Gate { accounts: app.accounts().await?.clone() });
    let flight = Router::new()
        .route_service(flight::PATH, flight::service(engine.clone(), Arc::clone(&gate)))
        .layer(middleware::from_fn(with_address));
    Ok(Api::new(engine, kept, gate).router().merge(flight))
}

/// The PostgreSQL server with its port; `None` when the setting is empty. Errors: the port is taken.
async fn postgres(app: &App, tls: Option<postgres::Tls>) -> anyhow::Result<Option<(postgres::Service, TcpListener)>> {
    let server = &app.config()?.server;
    if server.postgres_listen.is_empty() {
        return Ok(None);
    }
    let options = postgres::Options { tls, ..postgres::Options::default() };
    let listener = health::bind(&server.postgres_listen, "server.postgres_listen").await?;
    let gate = Arc::new(Gate { accounts: app.accounts().await?.clone() });
    Ok(Some((postgres::Service::new(app.engine().await?.clone(), gate, options), listener)))
}

/// Serves clients of PostgreSQL until `stop` turns true.
async fn serve_postgres(service: postgres::Service, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    if let Err(error) = service.run(listener, stopped).await {
        tracing::error!(%error, "the PostgreSQL server ended");
    }
}

#[async_trait]
impl postgres::Accounts for Gate {
    async fn verifier(&self, user: &str, from: IpAddr) -> Result<postgres::ScramVerifier, Box<dyn Fault>> {
        self.accounts.may_try(user, from).map_err(fault)?;
        let verifier = self.accounts.scram_verifier(user).await.map_err(fault)?;
        Ok(postgres::ScramVerifier {
            salt: verifier.salt,
            iterations: verifier.iterations,
            stored_key: verifier.stored_key,
            server_key: verifier.server_key,
        })
    }

    async fn succeeded(&self, user: &str, from: IpAddr) {
        self.accounts.succeeded(user, from);
    }

    async fn failed(&self, user: &str, from: IpAddr) {
        self.accounts.failed(user, from);
    }
}

fn fault(error: Error) -> Box<dyn Fault> {
    Box::new(error)
}

/// Tells a service that knows nothing of our listener where its requests come from.
async fn with_address(mut request: Request, next: Next) -> Response {
    if let Some(ConnectInfo(Peer(from))) = request.extensions().get::<ConnectInfo<Peer>>().copied() {
        request.extensions_mut().insert(from.ip());
    }
    next.run(request).await
}

/// Answers until `stop` turns true.
async fn serve(listener: TcpListener, tls: Option<Tls>, routes: Router, stop: watch::Receiver<bool>) {
    if let Err(error) = headworks_api::serve(listener, tls, routes, stop).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

/// The accounts as the doors ask them.
struct Gate {
    accounts: Accounts,
}

#[async_trait]
impl SignIn for Gate {
    async fn sign_in(&self, credentials: Credentials, from: IpAddr) -> Result<Signed, SignInError> {
        let account = match credentials {
            Credentials::Token(token) => self.accounts.authenticate_token(token.expose()).await,
            Credentials::Password { user, password } => {
                match self.accounts.authenticate_token(password.expose()).await {
                    Err(Error::SignIn) => self.accounts.authenticate_password(&user, &password, from).await,
                    by_token => by_token,
                }
            }
        };
        account.map(signed).map_err(|error| why(&error))
    }

    async fn again(&self, session: &str) -> Result<Signed, SignInError> {
        self.accounts.account(session).await.map(signed).map_err(|error| why(&error))
    }
}

fn signed(account: Account) -> Signed {
    Signed {
        may_query: account.may(Right::Query),
        may_manage: account.may(Right::ManageAccounts),
        session: account.scopes.is_none().then(|| account.session.clone()),
        caller: Caller {
            user: account.name.to_string(),
            role: Some(account.role.to_string()),
            access: account.access,
            application: None,
        },
    }
}

fn why(error: &Error) -> SignInError {
    match error {
        Error::SignIn => SignInError::Wrong,
        Error::Slowed { seconds } => SignInError::Slowed(*seconds),
        Error::Crowded => SignInError::Slowed(1),
        other => {
            tracing::warn!(error = %other, "somebody could not sign in because the accounts cannot be read");
            SignInError::Unavailable
        }
    }
}
