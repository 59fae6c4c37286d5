//! One end of two-party Cap'n Proto RPC, level 1, as far as a tunnel needs it (tunnel-protocol.md §3.1).
//!
//! Serves at most one object, the bootstrap, and calls at most one, the peer's bootstrap; promise
//! pipelining works on the bootstrap answer. Whatever else the protocol allows is answered
//! `Unimplemented`, as the stock connector does.
//!
//! `handle_message` in; `poll_transmit` and `poll_event` out; drain both after each input.

mod answers;
mod messages;
mod questions;

use std::collections::VecDeque;

use bytes::Bytes;
use capnp::any_pointer;
use capnp_rpc::rpc_capnp as wire;
use thiserror::Error;

pub use self::{
    answers::{AnswerId, IncomingCall},
    questions::{QuestionId, Results},
};
use self::{
    answers::{Answers, Target},
    questions::{Questions, Returned},
};

/// Why the conversation cannot go on; an `Abort` has been queued for the peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RpcError {
    /// A message is not valid Cap'n Proto or lacks what it must have.
    #[error("malformed RPC message")]
    Malformed,
    /// The peer uses an id that is in use, or that it never got.
    #[error("RPC message with a wrong {0} id")]
    WrongId(&'static str),
    /// More calls unanswered than allowed.
    #[error("more than {ANSWERS_MAX} RPC calls are unanswered")]
    TooManyCalls,
    /// More calls made than allowed without an answer.
    #[error("more than {QUESTIONS_MAX} RPC calls wait for an answer")]
    TooManyQuestions,
    /// The peer was told or told us that the conversation is over.
    #[error("RPC conversation is over")]
    Closed,
}

impl RpcError {
    /// The name under which logs and metrics count this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed_rpc",
            Self::WrongId(_) => "wrong_rpc_id",
            Self::TooManyCalls => "too_many_calls",
            Self::TooManyQuestions => "too_many_questions",
            Self::Closed => "rpc_closed",
        }
    }
}

/// Why a call has no results.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("remote call failed: {reason}")]
pub struct Exception {
    /// The callee's words.
    pub reason: String,
}

/// What came of a message.
#[derive(Clone, Debug)]
pub enum RpcEvent {
    /// The peer calls; answer with [`Peer::respond`] or [`Peer::refuse`].
    Call(IncomingCall),
    /// One of our calls has come back.
    Returned {
        /// Which.
        question: QuestionId,
        /// With what.
        outcome: Result<Results, Exception>,
    },
    /// The peer ended the conversation.
    Aborted {
        /// Its words; `rpc: shutdown` is the normal end (§3.1).
        reason: String,
    },
}

/// One end of the conversation.
#[derive(Debug, Default)]
pub struct Peer {
    questions: Questions,
    answers: Answers,
    transmits: VecDeque<Bytes>,
    events: VecDeque<RpcEvent>,
    closed: bool,
}

impl Peer {
    /// An end that serves its bootstrap object and may call the peer's.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `method` of `interface` on the peer's bootstrap object; `fill` writes the parameters,
    /// for which about `size_hint` bytes are set aside.
    ///
    /// The first call asks for the bootstrap and is pipelined on its answer.
    ///
    /// # Errors
    /// When the conversation is over, too many calls wait, or `fill` fails.
    pub fn call(
        &mut self,
        method: Method,
        size_hint: usize,
        fill: impl FnOnce(any_pointer::Builder<'_>) -> capnp::Result<()>,
    ) -> Result<QuestionId, RpcError> {
        if self.closed {
            return Err(RpcError::Closed);
        }
        if let Some(question) = self.questions.want_bootstrap()? {
            self.transmits.push_back(messages::bootstrap(question));
        }
        let question = self.questions.ask()?;
        let target = self.questions.target();
        let message =
            messages::call(question, target, method, size_hint, fill).map_err(|_| RpcError::Malformed)?;
        self.transmits.push_back(message);
        Ok(question)
    }

    /// Answers a call with results, which `fill` writes.
    ///
    /// # Errors
    /// When `fill` fails.
    pub fn respond(
        &mut self,
        call: AnswerId,
        fill: impl FnOnce(any_pointer::Builder<'_>) -> capnp::Result<()>,
    ) -> Result<(), RpcError> {
        if self.answers.returned(call) && !self.closed {
            let message = messages::results(call, fill).map_err(|_| RpcError::Malformed)?;
            self.transmits.push_back(message);
        }
        Ok(())
    }

    /// Answers a call with an exception.
    pub fn refuse(&mut self, call: AnswerId, reason: &str, unimplemented: bool) {
        if self.answers.returned(call) && !self.closed {
            self.transmits.push_back(messages::exception(call, reason, unimplemented));
        }
    }

    /// Ends the conversation the way the stock connector does: release the bootstrap, then abort
    /// with `rpc: shutdown`.
    pub fn shutdown(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if let Some(import) = self.questions.release_bootstrap() {
            self.transmits.push_back(messages::release(import, 1));
        }
        self.transmits.push_back(messages::abort(SHUTDOWN_REASON));
    }

    /// Takes one whole message, segment table included.
    ///
    /// # Errors
    /// When the peer broke the protocol; the conversation is then over.
    pub fn handle_message(&mut self, message: &Bytes) -> Result<(), RpcError> {
        if self.closed {
            // What crosses our own Abort is of no interest.
            return Ok(());
        }
        let outcome = self.dispatch(message);
        if let Err(error) = &outcome {
            self.closed = true;
            self.transmits.push_back(messages::abort(&error.to_string()));
        }
        outcome
    }

    /// The next message for the peer, framed.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<RpcEvent> {
        self.events.pop_front()
    }

    /// Whether the conversation is over.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn dispatch(&mut self, message: &Bytes) -> Result<(), RpcError> {
        let reader = messages::read(message)?;
        let root: wire::message::Reader<'_> = reader.get_root().map_err(malformed)?;
        match root.which() {
            Ok(wire::message::Bootstrap(bootstrap)) => {
                self.handle_bootstrap(bootstrap.map_err(malformed)?.get_question_id())
            }
            Ok(wire::message::Call(call)) => self.handle_call(call.map_err(malformed)?, message),
            Ok(wire::message::Return(answer)) => self.handle_return(answer.map_err(malformed)?, message),
            Ok(wire::message::Finish(finish)) => {
                let finish = finish.map_err(malformed)?;
                self.answers.finish(finish.get_question_id(), finish.get_release_result_caps())
            }
            Ok(wire::message::Release(release)) => {
                let release = release.map_err(malformed)?;
                self.answers.release(release.get_id(), release.get_reference_count())
            }
            Ok(wire::message::Abort(exception)) => {
                self.closed = true;
                let reason = messages::reason_of(exception.map_err(malformed)?);
                self.events.push_back(RpcEvent::Aborted { reason });
                Ok(())
            }
            Ok(wire::message::Unimplemented(inner)) => {
                self.handle_unimplemented(inner.map_err(malformed)?);
                Ok(())
            }
            // Resolve, Disembargo, third-party messages and whatever comes later.
            Ok(_) | Err(_) => {
                self.transmits.push_back(messages::unimplemented(root).map_err(malformed)?);
                Ok(())
            }
        }
    }

    fn handle_bootstrap(&mut self, question: u32) -> Result<(), RpcError> {
        let answer = self.answers.begin_bootstrap(question)?;
        self.transmits.push_back(messages::bootstrap_answer(answer));
        Ok(())
    }

    fn handle_call(&mut self, call: wire::call::Reader<'_>, message: &Bytes) -> Result<(), RpcError> {
        let target = match call.get_target().map_err(malformed)?.which() {
            Ok(wire::message_target::ImportedCap(id)) => Target::Import(id),
            Ok(wire::message_target::PromisedAnswer(promised)) => {
                let promised = promised.map_err(malformed)?;
                let transform = promised.get_transform().map_err(malformed)?;
                Target::Promise { answer: promised.get_question_id(), plain: messages::is_plain(transform) }
            }
            Err(_) => return Err(RpcError::Malformed),
        };
        let id = self.answers.begin_call(call.get_question_id())?;
        let to_caller =
            matches!(call.get_send_results_to().which(), Ok(wire::call::send_results_to::Caller(())));
        if !to_caller {
            self.refuse(id, "results can only be sent to the caller", true);
        } else if !self.answers.is_bootstrap(target) {
            self.refuse(id, "call on an unknown object", false);
        } else {
            let method = Method { interface: call.get_interface_id(), ordinal: call.get_method_id() };
            self.events.push_back(RpcEvent::Call(IncomingCall { id, method, message: message.clone() }));
        }
        Ok(())
    }

    fn handle_return(&mut self, answer: wire::return_::Reader<'_>, message: &Bytes) -> Result<(), RpcError> {
        let returned = self.questions.returned(answer, message)?;
        let question = QuestionId(answer.get_answer_id());
        if !answer.get_no_finish_needed() {
            self.transmits.push_back(messages::finish(question));
        }
        match returned {
            Returned::Bootstrap => {}
            Returned::BootstrapFailed(exception) => {
                // Calls pipelined on it come back with exceptions of their own.
                debug_assert!(!exception.reason.is_empty(), "an exception has words");
            }
            Returned::Call { outcome, capabilities } => {
                // We never asked for objects; give back what came anyway.
                for import in capabilities {
                    self.transmits.push_back(messages::release(import, 1));
                }
                self.events.push_back(RpcEvent::Returned { question, outcome });
            }
        }
        Ok(())
    }

    /// The peer does not know a message of ours: fatal for a question, of no interest otherwise.
    fn handle_unimplemented(&mut self, inner: wire::message::Reader<'_>) {
        let question = match inner.which() {
            Ok(wire::message::Call(Ok(call))) => call.get_question_id(),
            Ok(wire::message::Bootstrap(Ok(bootstrap))) => bootstrap.get_question_id(),
            _ => return,
        };
        if self.questions.forget(question) {
            let outcome = Err(Exception { reason: "peer does not implement the call".to_owned() });
            self.events.push_back(RpcEvent::Returned { question: QuestionId(question), outcome });
        }
    }
}

/// A method: its interface's id and its ordinal (tunnel-protocol.md §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Id of the interface that declares it.
    pub interface: u64,
    /// Its ordinal there.
    pub ordinal: u16,
}

fn malformed(_: capnp::Error) -> RpcError {
    RpcError::Malformed
}

/// Reason of the abort that is a normal end (tunnel-protocol.md §3.1).
pub const SHUTDOWN_REASON: &str = "rpc: shutdown";

/// Most unanswered or unfinished calls of the peer. A connector has two at once at most; each
/// waiting one may hold a message of 1 MiB, so a hostile registered peer costs 16 MiB.
pub const ANSWERS_MAX: usize = 16;

/// Most calls of ours without an answer; we make one or two at a time.
pub const QUESTIONS_MAX: usize = 16;

#[cfg(test)]
mod tests;
