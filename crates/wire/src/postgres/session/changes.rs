//! Statements that change the session: parameters, transactions, savepoints.

use std::sync::Arc;

use headworks_engine::PgSession;

use super::{Fail, Open, Session, Transaction, no_statement};
use crate::postgres::{
    error::{PgError, state},
    link::End,
    settings::REPORTED,
    statement::Statement,
};

/// The most savepoints of a transaction.
const SAVEPOINTS_MAX: usize = 1_000;

impl Session<'_> {
    /// Carries a statement without rows out; gives the words that its end is told with.
    pub(super) fn apply(&mut self, statement: Statement) -> Result<&'static str, Fail> {
        let mut tag = statement.tag();
        match statement {
            Statement::Set { name, value, is_local } => self.set(&name, value.as_deref(), is_local)?,
            Statement::ResetAll => {
                self.settings.reset();
                self.settings_changed(None)?;
            }
            Statement::Begin => {
                if matches!(self.transaction, Transaction::None) {
                    self.transaction = Transaction::Open(Open {
                        settings: self.settings.clone(),
                        savepoints: Vec::new(),
                        local: Vec::new(),
                    });
                }
            }
            Statement::Commit | Statement::Rollback => {
                let is_commit = statement == Statement::Commit;
                match std::mem::replace(&mut self.transaction, Transaction::None) {
                    Transaction::None => {}
                    Transaction::Open(open) if is_commit => {
                        for (name, value) in open.local {
                            self.settings.set(&name, Some(&value))?;
                        }
                    }
                    Transaction::Open(open) | Transaction::Failed(open) => {
                        self.settings = open.settings;
                        tag = "ROLLBACK";
                    }
                }
                self.settings_changed(None)?;
                self.portals.retain(|_, portal| portal.is_kept);
            }
            Statement::Savepoint(name) => {
                let open = self.open_transaction("SAVEPOINT")?;
                if open.savepoints.len() >= SAVEPOINTS_MAX {
                    return Err(PgError::new(state::LIMIT, "there are too many savepoints").into());
                }
                open.savepoints.push(name);
            }
            Statement::Release(name) => {
                let open = self.open_transaction("RELEASE SAVEPOINT")?;
                let at = savepoint(open, &name)?;
                open.savepoints.truncate(at);
            }
            Statement::RollbackTo(name) => {
                let open = self.open_transaction("ROLLBACK TO SAVEPOINT")?;
                let at = savepoint(open, &name)?;
                open.savepoints.truncate(at + 1);
                self.transaction = match std::mem::replace(&mut self.transaction, Transaction::None) {
                    Transaction::Failed(open) => Transaction::Open(open),
                    other => other,
                };
            }
            Statement::DiscardAll => {
                self.settings.reset();
                self.settings_changed(None)?;
                self.statements.clear();
                self.portals.clear();
            }
            Statement::Deallocate(None) => self.statements.clear(),
            Statement::Deallocate(Some(name)) => {
                self.statements.remove(&name).ok_or_else(|| no_statement(&name))?;
            }
            Statement::Close(None) => self.portals.clear(),
            Statement::Close(Some(name)) => {
                let closed = self.portals.remove(&name);
                closed.ok_or_else(|| PgError::new(state::NO_CURSOR, format!("cursor `{name}` does not exist")))?;
            }
            Statement::Nothing(_) => {}
            Statement::Query(_)
            | Statement::Show(_)
            | Statement::ShowAll
            | Statement::Declare { .. }
            | Statement::Fetch { .. }
            | Statement::Copy { .. } => {
                return Err(PgError::new(state::INTERNAL, "a statement with rows was not started").into());
            }
        }
        Ok(tag)
    }

    pub(super) fn open_transaction(&mut self, what: &str) -> Result<&mut Open, PgError> {
        match &mut self.transaction {
            Transaction::Open(open) | Transaction::Failed(open) => Ok(open),
            Transaction::None => {
                Err(PgError::new(state::NO_TRANSACTION, format!("{what} can only be used in transaction blocks")))
            }
        }
    }

    pub(super) fn set(&mut self, name: &str, value: Option<&str>, is_local: bool) -> Result<(), Fail> {
        if is_local {
            // Outside of a transaction it lasts for no time at all.
            let before = self.settings.get(name)?.to_owned();
            match &mut self.transaction {
                Transaction::Open(open) => open.local.insert(0, (name.to_owned(), before)),
                _ => return Ok(()),
            }
        }
        self.settings.set(name, value)?;
        self.settings_changed(Some(name))?;
        Ok(())
    }

    /// Tells the client of new values of one parameter, or of all.
    pub(super) fn settings_changed(&mut self, name: Option<&str>) -> Result<(), End> {
        let before = std::mem::take(&mut self.known);
        self.known =
            Arc::new(PgSession { pid: before.pid, settings: self.settings.all().clone(), cursors: Vec::new() });
        for reported in REPORTED {
            let is_it = name.is_none_or(|name| name.eq_ignore_ascii_case(reported));
            let lower = reported.to_lowercase();
            if is_it && before.settings.get(&lower) != self.known.settings.get(&lower) {
                self.report(reported)?;
            }
        }
        Ok(())
    }
}

fn savepoint(open: &Open, name: &str) -> Result<usize, PgError> {
    let found = open.savepoints.iter().rposition(|savepoint| savepoint == name);
    found.ok_or_else(|| PgError::new(state::NO_SAVEPOINT, format!("savepoint `{name}` does not exist")))
}
