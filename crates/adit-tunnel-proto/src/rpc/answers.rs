//! The peer's calls: which are being answered, and how often it holds our bootstrap object.

use std::collections::BTreeMap;

use bytes::Bytes;
use capnp_rpc::rpc_capnp as wire;

use super::{ANSWERS_MAX, Method, RpcError, malformed, messages};

/// One call of the peer, until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AnswerId(pub(crate) u32);

/// A call of the peer, parameters still encoded.
#[derive(Clone, Debug)]
pub struct IncomingCall {
    /// What to answer.
    pub id: AnswerId,
    /// What is called.
    pub method: Method,
    pub(super) message: Bytes,
}

impl IncomingCall {
    /// Reads the parameters as the struct `T`, through `read`.
    ///
    /// # Errors
    /// When they are not a valid `T`, or `read` fails.
    pub fn read<T, R>(&self, read: impl FnOnce(T::Reader<'_>) -> capnp::Result<R>) -> Result<R, RpcError>
    where
        T: capnp::traits::Owned,
    {
        let reader = messages::read(&self.message)?;
        let root: wire::message::Reader<'_> = reader.get_root().map_err(malformed)?;
        let Ok(wire::message::Call(Ok(call))) = root.which() else { return Err(RpcError::Malformed) };
        let content = call.get_params().map_err(malformed)?.get_content().get_as().map_err(malformed)?;
        read(content).map_err(malformed)
    }
}

/// What a call of the peer is made on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// One of our exports.
    Import(u32),
    /// The answer to an earlier question, and whether the answer itself rather than a field of it.
    Promise { answer: u32, plain: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Returned; kept for pipelining until the peer finishes it.
    Bootstrap,
    /// Being answered.
    Pending,
    /// Being answered, though the peer no longer wants it: the return is still owed.
    Unwanted,
    /// Returned, not finished.
    Returned,
}

/// The answers table and the count of references to the one export.
#[derive(Debug, Default)]
pub(super) struct Answers {
    open: BTreeMap<u32, Answer>,
    bootstrap_references: u64,
}

impl Answers {
    pub(super) fn begin_bootstrap(&mut self, question: u32) -> Result<AnswerId, RpcError> {
        let id = self.begin(question, Answer::Bootstrap)?;
        self.bootstrap_references += 1;
        Ok(id)
    }

    pub(super) fn begin_call(&mut self, question: u32) -> Result<AnswerId, RpcError> {
        self.begin(question, Answer::Pending)
    }

    pub(super) fn is_bootstrap(&self, target: Target) -> bool {
        match target {
            Target::Import(id) => id == BOOTSTRAP_EXPORT && self.bootstrap_references > 0,
            Target::Promise { answer, plain } => plain && self.open.get(&answer) == Some(&Answer::Bootstrap),
        }
    }

    /// Marks a call as answered; whether the answer is still to be sent.
    pub(super) fn returned(&mut self, id: AnswerId) -> bool {
        match self.open.get_mut(&id.0) {
            Some(answer @ Answer::Pending) => {
                *answer = Answer::Returned;
                true
            }
            Some(Answer::Unwanted) => {
                self.open.remove(&id.0);
                true
            }
            _ => false,
        }
    }

    pub(super) fn finish(&mut self, question: u32, release_capabilities: bool) -> Result<(), RpcError> {
        match self.open.remove(&question).ok_or(RpcError::WrongId("question"))? {
            Answer::Bootstrap if release_capabilities => self.release(BOOTSTRAP_EXPORT, 1),
            Answer::Pending | Answer::Unwanted => {
                self.open.insert(question, Answer::Unwanted);
                Ok(())
            }
            Answer::Bootstrap | Answer::Returned => Ok(()),
        }
    }

    pub(super) fn release(&mut self, export: u32, count: u32) -> Result<(), RpcError> {
        if export != BOOTSTRAP_EXPORT {
            return Err(RpcError::WrongId("export"));
        }
        self.bootstrap_references =
            self.bootstrap_references.checked_sub(u64::from(count)).ok_or(RpcError::WrongId("export"))?;
        Ok(())
    }

    fn begin(&mut self, question: u32, answer: Answer) -> Result<AnswerId, RpcError> {
        if self.open.len() >= ANSWERS_MAX {
            return Err(RpcError::TooManyCalls);
        }
        if self.open.contains_key(&question) {
            return Err(RpcError::WrongId("question"));
        }
        self.open.insert(question, answer);
        Ok(AnswerId(question))
    }
}

/// The one object we export.
const BOOTSTRAP_EXPORT: u32 = 0;
