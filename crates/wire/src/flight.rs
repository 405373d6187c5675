//! Arrow Flight SQL: results as Arrow batches over gRPC, for ADBC and JDBC drivers.
//!
//! A statement starts when its client asks for its `FlightInfo`, so that the schema is that of its rows; the rows wait under a
//! ticket until the client takes them, or for a minute. Each call shows who asks, with an API token or a password, or with what
//! the handshake gave for one.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Field, Schema, SchemaRef},
    ipc::writer::IpcWriteOptions,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage,
    SchemaAsIpc, Ticket,
    decode::FlightRecordBatchStream,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    flight_service_server::{FlightService, FlightServiceServer},
    sql::{
        ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
        ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, Command, CommandGetCatalogs,
        CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandPreparedStatementQuery,
        CommandStatementQuery, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
        metadata::{SqlInfoData, SqlInfoDataBuilder},
        server::{FlightSqlService, PeekableFlightDataStream},
    },
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use headworks_domain::{ErrorKind, Fault, Secret};
use headworks_engine::{
    Credentials, Engine, Error, QueryOptions, QueryStream, ScalarValue, SignIn, SignInError, Signed,
};
use prost::Message;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};
use uuid::Uuid;

/// How long rows wait for a client that has asked for them.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// Results that wait for their clients, of all of them together.
const WAITING_MAX: usize = 1_000;
/// Prepared statements of all clients together; the one that was not used for longest goes.
const PREPARED_MAX: usize = 10_000;
/// How long the token of a handshake holds since it was last used, and how many there are.
const SESSION_HOLDS: Duration = Duration::from_secs(12 * 3_600);
const SESSIONS_MAX: usize = 10_000;

/// The path of all its methods, as axum writes it.
pub const PATH: &str = "/arrow.flight.protocol.FlightService/{*method}";

/// Makes the gRPC service.
pub fn service(engine: Engine, accounts: Arc<dyn SignIn>) -> FlightServiceServer<impl FlightService> {
    FlightServiceServer::new(Flight { engine, accounts, desk: Arc::default() })
}

struct Flight {
    engine: Engine,
    accounts: Arc<dyn SignIn>,
    desk: Arc<Mutex<Desk>>,
}

/// What is between two calls of a client.
#[derive(Default)]
struct Desk {
    sessions: HashMap<String, Session>,
    waiting: HashMap<String, Waiting>,
    prepared: HashMap<String, Prepared>,
}

struct Session {
    user: String,
    used: Instant,
}

/// Rows that somebody has asked for.
struct Waiting {
    user: String,
    rows: QueryStream,
    since: Instant,
}

#[derive(Clone)]
struct Prepared {
    user: String,
    sql: String,
    parameters: Vec<ScalarValue>,
    used: Instant,
}

impl Desk {
    /// Lets go of what nobody came for.
    fn tidy(&mut self) {
        self.waiting.retain(|_, waiting| waiting.since.elapsed() < TAKEN_WITHIN);
        self.sessions.retain(|_, session| session.used.elapsed() < SESSION_HOLDS);
    }
}

/// Removes what was used longest ago, when there is no room for one more.
fn make_room<T>(shelf: &mut HashMap<String, T>, most: usize, used: impl Fn(&T) -> Instant) {
    if shelf.len() < most {
        return;
    }
    if let Some(oldest) = shelf.iter().min_by_key(|(_, item)| used(item)).map(|(key, _)| key.clone()) {
        shelf.remove(&oldest);
    }
}

fn status(error: &Error) -> Status {
    let hint = error.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
    let message = format!("{} ({}){hint}", error, error.code());
    match error.kind() {
        ErrorKind::Invalid => Status::invalid_argument(message),
        ErrorKind::NotFound => Status::not_found(message),
        ErrorKind::Conflict => Status::aborted(message),
        ErrorKind::Unavailable => Status::unavailable(message),
        ErrorKind::Exhausted if matches!(error, Error::Timeout { .. }) => Status::deadline_exceeded(message),
        ErrorKind::Exhausted => Status::resource_exhausted(message),
        ErrorKind::Denied => Status::permission_denied(message),
        ErrorKind::Corrupt => Status::data_loss(message),
        ErrorKind::Cancelled => Status::cancelled(message),
        ErrorKind::Internal => Status::internal(message),
    }
}

/// `CancelResult` of the protocol, whose names the library keeps to itself.
const CANCELLED: i32 = 1;
const CANCEL_NOTHING: i32 = 3;

fn no_such(what: &str) -> Status {
    Status::not_found(format!("there is no such {what}, or it waited too long"))
}

fn unwritable(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("the answer cannot be written: {error}"))
}

type Rows = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

impl Flight {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who asks. Errors: `unauthenticated`, `permission_denied`.
    async fn signed<T>(&self, request: &Request<T>) -> Result<Signed, Status> {
        let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let credentials = shown.and_then(Credentials::of_header).ok_or_else(|| {
            Status::unauthenticated(
                "nobody has signed in: send `authorization: Bearer <token>`, or a user and password",
            )
        })?;
        let session = match &credentials {
            Credentials::Token(token) => self.user_of_session(token),
            Credentials::Password { .. } => None,
        };
        let from = request.extensions().get::<IpAddr>().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let signed = match session {
            Some(user) => self.accounts.again(&user).await,
            None => self.accounts.sign_in(credentials, from).await,
        };
        let signed = signed.map_err(|error| match error {
            SignInError::Slowed(seconds) => {
                Status::unavailable(format!("too many have failed to sign in by this name: try again in {seconds} s"))
            }
            SignInError::Wrong => Status::unauthenticated("the token, or the name and password, are not right"),
            SignInError::Unavailable => Status::unavailable("the accounts cannot be read now"),
        })?;
        if !signed.may_query {
            return Err(Status::permission_denied(format!("`{}` may not ask queries", signed.caller.user)));
        }
        let agent = request.metadata().get("user-agent").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let caller = headworks_engine::Caller { application: agent, ..signed.caller };
        Ok(Signed { caller, ..signed })
    }

    /// Who got this token from a handshake.
    fn user_of_session(&self, token: &Secret) -> Option<String> {
        let mut desk = self.desk();
        desk.tidy();
        let session = desk.sessions.get_mut(token.expose())?;
        session.used = Instant::now();
        Some(session.user.clone())
    }

    fn options(signed: &Signed, parameters: Vec<ScalarValue>) -> QueryOptions {
        QueryOptions { caller: signed.caller.clone(), parameters, ..QueryOptions::default() }
    }

    /// Starts a statement and tells where its rows are.
    async fn started(
        &self,
        signed: &Signed,
        sql: &str,
        parameters: Vec<ScalarValue>,
        descriptor: FlightDescriptor,
    ) -> Result<Response<FlightInfo>, Status> {
        let rows = self.engine.query(sql, Self::options(signed, parameters)).await.map_err(|e| status(&e))?;
        let schema = rows.schema();
        let handle = Uuid::new_v4().to_string();
        {
            let mut desk = self.desk();
            desk.tidy();
            if desk.waiting.len() >= WAITING_MAX {
                return Err(Status::resource_exhausted("too many results wait for their clients"));
            }
            let waiting = Waiting { user: signed.caller.user.clone(), rows, since: Instant::now() };
            desk.waiting.insert(handle.clone(), waiting);
        }
        let ticket = TicketStatementQuery { statement_handle: handle.clone().into_bytes().into() };
        // A client that goes away between the two calls leaves a query that runs for nobody.
        let desk = Arc::clone(&self.desk);
        tokio::spawn(async move {
            tokio::time::sleep(TAKEN_WITHIN).await;
            desk.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&handle);
        });
        info(&schema, ticket.as_any(), descriptor)
    }

    /// One batch that is known at once.
    fn known(batch: Result<RecordBatch, impl std::fmt::Display>) -> Result<Response<Rows>, Status> {
        let batch = batch.map_err(unwritable)?;
        Ok(Response::new(encoded(batch.schema(), stream::iter([Ok(batch)]))))
    }

    /// The tables that a caller sees: catalog, schema, name and type.
    async fn tables(&self, signed: &Signed) -> Result<Vec<[String; 4]>, Status> {
        let sql = "select table_catalog, table_schema, table_name, table_type from information_schema.tables
                   order by 1, 2, 3";
        let batches = self.engine.rows(sql, Self::options(signed, Vec::new())).await.map_err(|e| status(&e))?;
        let mut tables = Vec::new();
        for batch in batches {
            let columns = batch.columns().iter().map(|c| arrow::compute::cast(c, &arrow::datatypes::DataType::Utf8));
            let columns = columns.collect::<Result<Vec<_>, _>>().map_err(unwritable)?;
            for row in 0..batch.num_rows() {
                tables.push([0, 1, 2, 3].map(|column: usize| columns[column].as_string::<i32>().value(row).to_owned()));
            }
        }
        Ok(tables)
    }

    fn prepared(&self, signed: &Signed, handle: &[u8]) -> Result<Prepared, Status> {
        let handle = String::from_utf8_lossy(handle);
        let mut desk = self.desk();
        let prepared = desk.prepared.get_mut(&*handle).filter(|prepared| prepared.user == signed.caller.user);
        let prepared = prepared.ok_or_else(|| no_such("prepared statement"))?;
        prepared.used = Instant::now();
        Ok(prepared.clone())
    }
}

fn info(schema: &Schema, ticket: Any, descriptor: FlightDescriptor) -> Result<Response<FlightInfo>, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.encode_to_vec()));
    let info = FlightInfo::new().try_with_schema(schema).map_err(unwritable)?;
    Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(descriptor)))
}

fn encoded(schema: SchemaRef, rows: impl Stream<Item = Result<RecordBatch, Error>> + Send + 'static) -> Rows {
    let rows = rows.map_err(|error| FlightError::Tonic(Box::new(status(&error))));
    let data = FlightDataEncoderBuilder::new().with_schema(schema).build(rows);
    Box::pin(data.map_err(|error| match error {
        FlightError::Tonic(status) => *status,
        other => unwritable(other),
    }))
}

fn ipc(schema: &Schema) -> Result<bytes::Bytes, Status> {
    let options = IpcWriteOptions::default();
    let IpcMessage(message) = SchemaAsIpc::new(schema, &options).try_into().map_err(unwritable)?;
    Ok(message)
}

/// What the server says of itself.
fn sql_info() -> Result<SqlInfoData, Status> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "Headworks");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, 0_i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.build().map_err(unwritable)
}

#[tonic::async_trait]
impl FlightSqlService for Flight {
    type FlightService = Self;

    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>>, Status> {
        let signed = self.signed(&request).await?;
        let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = match shown.and_then(Credentials::of_header) {
            Some(Credentials::Token(token)) => token.expose().to_owned(),
            // A token in the place of a password goes on as what it is.
            Some(Credentials::Password { password, .. }) if signed.session.is_none() => password.expose().to_owned(),
            Some(Credentials::Password { .. }) => {
                let token = format!("session_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
                let mut desk = self.desk();
                make_room(&mut desk.sessions, SESSIONS_MAX, |session| session.used);
                let user = signed.session.unwrap_or_default();
                let session = Session { user, used: Instant::now() };
                desk.sessions.insert(token.clone(), session);
                token
            }
            None => return Err(Status::unauthenticated("nobody has signed in")),
        };
        let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into() };
        let mut response: Response<Pin<Box<dyn Stream<Item = _> + Send>>> =
            Response::new(Box::pin(stream::iter([Ok(answer)])));
        let value = MetadataValue::try_from(format!("Bearer {token}")).map_err(unwritable)?;
        response.metadata_mut().insert("authorization", value);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let signed = self.signed(&request).await?;
        self.started(&signed, &query.query, Vec::new(), request.into_inner()).await
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let signed = self.signed(&request).await?;
        let handle = String::from_utf8_lossy(&ticket.statement_handle).into_owned();
        let waiting = {
            let mut desk = self.desk();
            desk.tidy();
            match desk.waiting.get(&handle) {
                Some(waiting) if waiting.user == signed.caller.user => desk.waiting.remove(&handle),
                _ => None,
            }
        };
        let Waiting { rows, .. } = waiting.ok_or_else(|| no_such("result"))?;
        Ok(Response::new(encoded(rows.schema(), rows)))
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let signed = self.signed(&request).await?;
        let described = self.engine.describe(&query.query, Self::options(&signed, Vec::new())).await;
        let described = described.map_err(|error| status(&error))?;
        let parameter = |(index, kind): (usize, &Option<_>)| {
            let kind = kind.clone().unwrap_or(arrow::datatypes::DataType::Utf8);
            Field::new(format!("${}", index + 1), kind, true)
        };
        let parameters = Schema::new(described.parameters.iter().enumerate().map(parameter).collect::<Vec<_>>());
        let handle = Uuid::new_v4().to_string();
        let (dataset_schema, parameter_schema) = (ipc(&described.schema)?, ipc(&parameters)?);
        let mut desk = self.desk();
        make_room(&mut desk.prepared, PREPARED_MAX, |prepared| prepared.used);
        let (user, used) = (signed.caller.user, Instant::now());
        desk.prepared.insert(handle.clone(), Prepared { user, sql: query.query, parameters: Vec::new(), used });
        let prepared_statement_handle = handle.into_bytes().into();
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle, dataset_schema, parameter_schema })
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let signed = self.signed(&request).await?;
        self.prepared(&signed, &query.prepared_statement_handle)?;
        let data = request.into_inner().into_peekable().map_err(|status| FlightError::Tonic(Box::new(status)));
        let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
        let mut parameters = None;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|error| Status::invalid_argument(error.to_string()))?;
            if batch.num_rows() == 0 {
                continue;
            }
            if batch.num_rows() > 1 || parameters.is_some() {
                return Err(Status::unimplemented("a statement takes one row of parameters at a time"));
            }
            let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
            let values: Result<Vec<_>, _> = values.collect();
            parameters = Some(values.map_err(|error| Status::invalid_argument(error.to_string()))?);
        }
        let handle = String::from_utf8_lossy(&query.prepared_statement_handle).into_owned();
        if let Some(prepared) = self.desk().prepared.get_mut(&handle) {
            prepared.parameters = parameters.unwrap_or_default();
        }
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(query.prepared_statement_handle) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let signed = self.signed(&request).await?;
        let Prepared { sql, parameters, .. } = self.prepared(&signed, &query.prepared_statement_handle)?;
        self.started(&signed, &sql, parameters, request.into_inner()).await
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        let signed = self.signed(&request).await?;
        self.prepared(&signed, &query.prepared_statement_handle)?;
        let handle = String::from_utf8_lossy(&query.prepared_statement_handle).into_owned();
        self.desk().prepared.remove(&handle);
        Ok(())
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let signed = self.signed(&request).await?;
        let info = FlightInfo::decode(query.info).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut result = CANCEL_NOTHING;
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            let any = Any::decode(ticket.ticket).map_err(|error| Status::invalid_argument(error.to_string()))?;
            if let Ok(Command::TicketStatementQuery(ticket)) = Command::try_from(any) {
                let handle = String::from_utf8_lossy(&ticket.statement_handle).into_owned();
                let mut desk = self.desk();
                if desk.waiting.get(&handle).is_some_and(|waiting| waiting.user == signed.caller.user) {
                    desk.waiting.remove(&handle);
                    result = CANCELLED;
                }
            }
        }
        Ok(ActionCancelQueryResult { result })
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.signed(&request).await?;
        info(&query.into_builder().schema(), query.as_any(), request.into_inner())
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let signed = self.signed(&request).await?;
        let mut builder = query.into_builder();
        for [catalog, ..] in self.tables(&signed).await? {
            builder.append(catalog);
        }
        Self::known(builder.build())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.signed(&request).await?;
        info(&query.clone().into_builder().schema(), query.as_any(), request.into_inner())
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let signed = self.signed(&request).await?;
        let mut builder = query.into_builder();
        let mut tables = self.tables(&signed).await?;
        tables.dedup_by(|a, b| a[..2] == b[..2]);
        for [catalog, schema, ..] in tables {
            builder.append(catalog, schema);
        }
        Self::known(builder.build())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.signed(&request).await?;
        info(&query.clone().into_builder().schema(), query.as_any(), request.into_inner())
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let signed = self.signed(&request).await?;
        let has_schema = query.include_schema;
        let mut builder = query.into_builder();
        for [catalog, schema, table, kind] in self.tables(&signed).await? {
            let mut columns = Schema::empty();
            if has_schema {
                let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
                let sql = format!("select * from {}.{}", quoted(&schema), quoted(&table));
                // One table that cannot be read does not hide the others.
                if let Ok(described) = self.engine.describe(&sql, Self::options(&signed, Vec::new())).await {
                    columns = described.schema.as_ref().clone();
                }
            }
            builder.append(catalog, schema, table, kind, &columns).map_err(unwritable)?;
        }
        Self::known(builder.build())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.signed(&request).await?;
        info(&query.into_builder().schema(), query.as_any(), request.into_inner())
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let signed = self.signed(&request).await?;
        let mut builder = query.into_builder();
        for [.., kind] in self.tables(&signed).await? {
            builder.append(kind);
        }
        Self::known(builder.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.signed(&request).await?;
        let data = sql_info()?;
        info(&query.clone().into_builder(&data).schema(), query.as_any(), request.into_inner())
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        self.signed(&request).await?;
        let data = sql_info()?;
        Self::known(query.into_builder(&data).build())
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}
