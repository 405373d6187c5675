//! The doors of the query service: the HTTP API, Flight SQL on the same port, and who may pass.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use axum::{
    Router,
    extract::{ConnectInfo, Request},
    middleware::{self, Next},
    response::Response,
};
use headworks_api::{Api, Peer, Tls};
use headworks_domain::{ErrorKind, Right};
use headworks_engine::{Caller, Credentials, KeptOptions, KeptQueries, SignIn, SignInError, Signed};
use headworks_meta::{Account, Accounts, Error};
use headworks_wire::flight;
use tokio::{net::TcpListener, sync::watch};

use crate::{app::App, fail::Failure};

/// The server's certificate, when the settings name one. Errors: it cannot be used.
pub(super) fn tls(app: &App) -> anyhow::Result<Option<Tls>> {
    let server = &app.config()?.server;
    let (Some(certificate), Some(key)) = (&server.tls_certificate, &server.tls_key) else { return Ok(None) };
    let root = app.root()?;
    let read = Tls::read(&root.join(certificate), &root.join(key));
    let tls = read.map_err(|error| {
        let message = format!("the server's certificate cannot be used: {}", error.0);
        Failure::new(ErrorKind::Invalid, "SERVE_TLS", message)
            .hint("server.tls_certificate and server.tls_key name PEM files that belong together")
    })?;
    Ok(Some(tls))
}

/// The routes that ask the lake.
pub(super) async fn queries(app: &App) -> anyhow::Result<Router> {
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

/// Tells a service that knows nothing of our listener where its requests come from.
async fn with_address(mut request: Request, next: Next) -> Response {
    if let Some(ConnectInfo(Peer(from))) = request.extensions().get::<ConnectInfo<Peer>>().copied() {
        request.extensions_mut().insert(from.ip());
    }
    next.run(request).await
}

/// Answers until `stop` turns true.
pub(super) async fn serve(listener: TcpListener, tls: Option<Tls>, routes: Router, stop: watch::Receiver<bool>) {
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

    async fn again(&self, user: &str) -> Result<Signed, SignInError> {
        self.accounts.account(user).await.map(signed).map_err(|error| why(&error))
    }
}

fn signed(account: Account) -> Signed {
    Signed {
        may_query: account.may(Right::Query),
        may_manage: account.may(Right::ManageAccounts),
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
