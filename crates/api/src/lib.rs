//! The JSON API of Headworks over HTTP, described by OpenAPI.
//!
//! Queries are things here: they are submitted, looked at while they run, read page by page or as a whole in several formats,
//! and stopped. Who asks is told by [`SignIn`](headworks_engine::SignIn), which the program implements over its accounts; what they may read is held by
//! the engine.
//!
//! It deliberately runs nothing itself: the engine does, by its queues and limits.
//!
//! [`Api`] gives an axum router, [`serve`] answers with it on a port, with or without TLS.

mod auth;
mod problem;
mod queries;
mod results;
mod server;

use std::sync::Arc;

use axum::{Json, Router, extract::DefaultBodyLimit, routing::get};
use headworks_engine::{Engine, KeptQueries, SignIn};
use utoipa::{
    OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

pub use server::{Peer, Tls, TlsError, serve};

/// The most bytes that a request's body may have: a statement and its parameters.
const BODY_BYTES_MAX: usize = 4 << 20;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    pub(crate) engine: Engine,
    pub(crate) queries: KeptQueries,
    pub(crate) accounts: Arc<dyn SignIn>,
}

impl Api {
    /// Puts the parts together.
    pub fn new(engine: Engine, queries: KeptQueries, accounts: Arc<dyn SignIn>) -> Self {
        Self { engine, queries, accounts }
    }

    /// The routes below `/api/v1`.
    pub fn router(self) -> Router {
        let routes = Router::new()
            .route("/openapi.json", get(|| async { Json(openapi()) }))
            .route("/me", get(auth::me))
            .route("/queues", get(queries::queues))
            .route("/queries", get(queries::list).post(queries::submit))
            .route("/queries/{id}", get(queries::show).delete(queries::forget))
            .route("/queries/{id}/results", get(results::read))
            .route("/queries/{id}/events", get(queries::events))
            .fallback(problem::no_route)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self);
        Router::new().nest("/api/v1", routes)
    }
}

/// The description of the API, as OpenAPI 3.1.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut description = Description::openapi();
    let components = description.components.get_or_insert_default();
    let scheme =
        |scheme, text: &str| SecurityScheme::Http(Http::builder().scheme(scheme).description(Some(text)).build());
    components.add_security_scheme("token", scheme(HttpAuthScheme::Bearer, "an API token, as `hw_...`"));
    components.add_security_scheme("password", scheme(HttpAuthScheme::Basic, "a user's name and password"));
    description
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Headworks", license(name = "Apache-2.0")),
    servers((url = "/api/v1")),
    paths(
        auth::me,
        queries::queues,
        queries::list,
        queries::submit,
        queries::show,
        queries::forget,
        queries::events,
        results::read,
    ),
    security(("token" = []), ("password" = []))
)]
struct Description;
