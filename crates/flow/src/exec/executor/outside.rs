//! Looks at the outside world: the board says what is to be looked at, the runner looks.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use headworks_domain::ErrorKind;
use tokio::task::JoinError;

use super::{
    super::{segment::LOOK_WITHIN, timer::timeout},
    session::Session,
};
use crate::{
    machine::Failure,
    outside::{Answer, Question},
};

/// What a look came back with.
pub(super) type Looked = (Arc<Question>, Result<Answer, Failure>);

impl Session<'_> {
    /// Looks once, beside everything else.
    pub(super) fn inquire(&mut self, question: Arc<Question>) {
        let (runner, timer) = (Arc::clone(&self.executor.runner), Arc::clone(&self.executor.options.timer));
        self.looks.spawn(async move {
            let look = AssertUnwindSafe(runner.look(&question)).catch_unwind();
            let answer = match timeout(timer.as_ref(), LOOK_WITHIN, look).await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) => Err(Failure::new(ErrorKind::Internal, "FLOW_PANIC", "the look panicked")
                    .with_hint("this is a bug of Headworks: please report it with the program's log")),
                None => {
                    let message = format!("there was no answer within {} s", LOOK_WITHIN.as_secs());
                    Err(Failure::new(ErrorKind::Unavailable, "FLOW_LOOK_TIMEOUT", message))
                }
            };
            (question, answer)
        });
    }

    pub(super) fn looked(&mut self, looked: Result<Looked, JoinError>) {
        // Only a session that ends drops looks.
        let Ok((question, answer)) = looked else { return };
        match &answer {
            Ok(answer) => tracing::debug!(%question, met = answer.is_yes, said = answer.said, "looked outside"),
            Err(error) => tracing::warn!(%question, %error, retried = error.retryable, "could not look outside"),
        }
        let now = self.now();
        self.board.answered(&question, answer, now);
    }
}
