//! The extended protocol: statements are prepared, bound to values, described and carried out, each by a message of its own.

use std::sync::Arc;

use arrow::datatypes::DataType;
use headworks_engine::{Described, QueryOptions, ScalarValue};
use pgwire::messages::{
    data::{NoData, ParameterDescription},
    extendedquery::{BindComplete, CloseComplete, ParseComplete},
    response::EmptyQueryResponse,
};

use super::{
    Fail, Session, Transaction, failed_transaction, guarded, no_portal, no_statement, of_engine, portal_of,
    rows::{show_all_schema, show_schema},
};
use crate::postgres::{
    error::{PgError, state},
    frame::{Bind, Target},
    lexer, parameter,
    portal::{self, Portal, Prepared},
    statement::{Query, Statement},
    value::Format,
};

impl Session<'_> {
    pub(super) fn parse(&mut self, name: String, sql: String, oids: Vec<u32>) -> Result<(), Fail> {
        self.check_length(&sql)?;
        if !name.is_empty() && self.statements.contains_key(&name) {
            let message = format!("prepared statement `{name}` exists already");
            return Err(PgError::new(state::DUPLICATE_STATEMENT, message).into());
        }
        if self.statements.len() >= self.shared.options.statements_max {
            let limit = self.shared.options.statements_max;
            return Err(PgError::new(state::LIMIT, format!("a client may prepare {limit} statements"))
                .with_hint("close those that are not used: `DEALLOCATE ALL`")
                .into());
        }
        let tokens = lexer::tokens(&sql);
        let mut all = lexer::statements(&tokens);
        let statement = match (all.next(), all.next()) {
            (_, Some(_)) => {
                let message = "cannot insert multiple commands into a prepared statement";
                return Err(PgError::new(state::SYNTAX, message).into());
            }
            (Some(tokens), None) => {
                self.may_run(&sql, tokens)?;
                Some(Statement::of(&sql, tokens)?)
            }
            (None, None) => None,
        };
        let parameters = portal::count_parameters(&tokens)?.max(oids.len());
        let prepared = Prepared { statement, text: sql.into(), oids, parameters, described: None, told: None };
        self.statements.insert(name, prepared);
        self.link.put(&ParseComplete::new())?;
        Ok(())
    }

    /// Asks the engine about a prepared statement, once.
    pub(super) async fn described(&mut self, name: &str) -> Result<&Prepared, Fail> {
        self.renew().await?;
        let prepared = self.statements.get(name).ok_or_else(|| no_statement(name))?;
        let query = prepared.statement.as_ref().and_then(Statement::query).cloned();
        let Some(query) = query.filter(|_| prepared.described.is_none()) else {
            return self.statements.get(name).ok_or_else(|| no_statement(name).into());
        };
        let (text, named) = (Arc::clone(&prepared.text), prepared.named_types());
        let described = match self.ask(&query, &text, named.clone()).await {
            // As PostgreSQL does, what has no type is taken for a text.
            Err(Fail::Error(_)) if named.iter().any(Option::is_none) => {
                let texts = named.into_iter().map(|named| named.or(Some(DataType::Utf8))).collect();
                self.ask(&query, &text, texts).await?
            }
            other => other?,
        };
        let prepared = self.statements.get_mut(name).ok_or_else(|| no_statement(name))?;
        prepared.described = Some(described);
        Ok(prepared)
    }

    pub(super) async fn ask(
        &mut self,
        query: &Query,
        text: &str,
        types: Vec<Option<DataType>>,
    ) -> Result<Described, Fail> {
        let options = QueryOptions { parameter_types: types, ..self.options(Vec::new()) };
        let asked = self.shared.engine.describe(&query.sql, options);
        let described = guarded(&mut self.link, &mut self.signals, asked).await?;
        Ok(described.map_err(|error| of_engine(&error, text, query))?)
    }

    pub(super) async fn bind(&mut self, bind: Bind) -> Result<(), Fail> {
        let prepared = self.statements.get(&bind.statement).ok_or_else(|| no_statement(&bind.statement))?;
        if matches!(self.transaction, Transaction::Failed(_))
            && !prepared.statement.as_ref().is_some_and(Statement::ends_failure)
        {
            return Err(failed_transaction().into());
        }
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            let message = format!("portal `{}` exists already", bind.portal);
            return Err(PgError::new(state::DUPLICATE_CURSOR, message).into());
        }
        self.has_room_for_portal()?;
        let prepared = if prepared.named_types().iter().any(Option::is_none) {
            self.described(&bind.statement).await?
        } else {
            prepared
        };
        let (given, wanted) = (bind.parameters.len(), prepared.parameters);
        if given != wanted {
            let message = format!("the client gives {given} parameters, and the statement has {wanted}");
            return Err(PgError::new(state::PROTOCOL, message).into());
        }
        let formats = portal::formats(&bind.parameter_formats, given)?;
        let values = bind.parameters.iter().zip(formats).zip(prepared.types()).enumerate();
        let parameters: Result<Vec<ScalarValue>, PgError> = values
            .map(|(n, ((bytes, format), data_type))| parameter::value(bytes.as_ref(), format, &data_type, n + 1))
            .collect();
        let portal = Portal {
            parameters: parameters?,
            formats: bind.result_formats,
            told: prepared.told.clone(),
            ..portal_of(prepared.statement.clone(), &prepared.text)
        };
        self.portals.insert(bind.portal, portal);
        self.link.put(&BindComplete::new())?;
        Ok(())
    }

    pub(super) fn has_room_for_portal(&self) -> Result<(), PgError> {
        let limit = self.shared.options.portals_max;
        if self.portals.len() < limit {
            return Ok(());
        }
        Err(PgError::new(state::LIMIT, format!("a client may have {limit} portals and cursors"))
            .with_hint("close some"))
    }

    pub(super) async fn describe_statement(&mut self, name: &str) -> Result<(), Fail> {
        let prepared = self.described(name).await?;
        let types = prepared.type_oids();
        let described = prepared.described.as_ref().map(|described| Arc::clone(&described.schema));
        let schema = match prepared.statement.clone() {
            Some(Statement::Query(_)) => described,
            Some(Statement::Show(name)) => Some(show_schema(&name)),
            Some(Statement::ShowAll) => Some(show_all_schema()),
            Some(Statement::Fetch { cursor, is_move: false, .. }) => Some(self.cursor_columns(&cursor)?.0),
            _ => None,
        };
        self.link.put(&ParameterDescription::new(types))?;
        if let Some(prepared) = self.statements.get_mut(name) {
            prepared.told.clone_from(&schema);
        }
        match schema {
            None => self.link.put(&NoData::new())?,
            Some(schema) => {
                let formats = vec![Format::Text; schema.fields().len()];
                self.link.put(&portal::row_description(&schema, &formats))?;
            }
        }
        Ok(())
    }

    /// Starts the portal's query: it has its columns then, and is not planned twice.
    pub(super) async fn describe_portal(&mut self, name: String) -> Result<(), Fail> {
        self.renew().await?;
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        let has_rows = portal.statement.as_ref().is_some_and(|statement| {
            matches!(statement, Statement::Query(_) | Statement::Show(_) | Statement::ShowAll | Statement::Fetch { .. })
        });
        if has_rows {
            self.start(&mut portal).await?;
            portal.told = self.put_columns(&portal)?;
        } else {
            self.link.put(&NoData::new())?;
        }
        self.portals.insert(name, portal);
        Ok(())
    }

    pub(super) async fn execute(&mut self, name: String, rows_max: u32) -> Result<(), Fail> {
        self.renew().await?;
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        if matches!(self.transaction, Transaction::Failed(_))
            && !portal.statement.as_ref().is_some_and(Statement::ends_failure)
        {
            return Err(failed_transaction().into());
        }
        if portal.statement.is_none() {
            self.link.put(&EmptyQueryResponse::new())?;
        } else {
            self.start(&mut portal).await?;
            // Rights, or a table, may have changed since: the client would take one column for another.
            if let (Some(told), Some(now)) = (&portal.told, self.columns(&portal)?)
                && !portal::is_alike(told, &now)
            {
                let error = PgError::new(state::NOT_SUPPORTED, "cached plan must not change result type");
                return Err(error.with_hint("prepare the statement again").into());
            }
            self.finish(&mut portal, u64::from(rows_max)).await?;
        }
        self.portals.insert(name, portal);
        Ok(())
    }

    pub(super) fn close(&mut self, target: Target) -> Result<(), Fail> {
        match target {
            Target::Statement(name) => drop(self.statements.remove(&name)),
            Target::Portal(name) => drop(self.portals.remove(&name)),
        }
        self.link.put(&CloseComplete::new())?;
        Ok(())
    }
}
