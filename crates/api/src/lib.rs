//! The JSON API over HTTP and its OpenAPI description.
