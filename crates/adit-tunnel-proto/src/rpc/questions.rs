//! Our calls: which wait for an answer, and what the peer's bootstrap turned out to be.

use bytes::Bytes;
use capnp_rpc::rpc_capnp as wire;

use super::{Exception, QUESTIONS_MAX, RpcError, malformed, messages};

/// One call of ours, until it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuestionId(pub(crate) u32);

/// Results of a call of ours, still encoded.
#[derive(Clone, Debug)]
pub struct Results {
    message: Bytes,
}

impl Results {
    /// Reads the results as the struct `T`, through `read`.
    ///
    /// # Errors
    /// When they are not a valid `T`, or `read` fails.
    pub fn read<T, R>(&self, read: impl FnOnce(T::Reader<'_>) -> capnp::Result<R>) -> Result<R, RpcError>
    where
        T: capnp::traits::Owned,
    {
        let reader = messages::read(&self.message)?;
        let root: wire::message::Reader<'_> = reader.get_root().map_err(malformed)?;
        let Ok(wire::message::Return(Ok(answer))) = root.which() else { return Err(RpcError::Malformed) };
        let Ok(wire::return_::Results(Ok(payload))) = answer.which() else { return Err(RpcError::Malformed) };
        let content = payload.get_content().get_as().map_err(malformed)?;
        read(content).map_err(malformed)
    }
}

/// Where a call of ours goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallTarget {
    /// Pipelined on the bootstrap's answer.
    BootstrapAnswer(QuestionId),
    /// The imported bootstrap.
    Import(u32),
}

/// What an answer of the peer means.
#[derive(Debug)]
pub(super) enum Returned {
    Bootstrap,
    BootstrapFailed(Exception),
    Call { outcome: Result<Results, Exception>, capabilities: Vec<u32> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    Bootstrap,
    Call,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum BootstrapState {
    #[default]
    Unasked,
    Asked(QuestionId),
    Imported(u32),
    /// Released, or never granted: calls still go to the last known place and fail there.
    Gone,
}

/// The questions table; ids are recycled at once (§3.1).
#[derive(Debug, Default)]
pub(super) struct Questions {
    slots: Vec<Slot>,
    bootstrap: BootstrapState,
}

impl Questions {
    /// A question for the bootstrap, if it has not been asked for.
    pub(super) fn want_bootstrap(&mut self) -> Result<Option<QuestionId>, RpcError> {
        if self.bootstrap != BootstrapState::Unasked {
            return Ok(None);
        }
        let question = self.allocate(Slot::Bootstrap)?;
        self.bootstrap = BootstrapState::Asked(question);
        Ok(Some(question))
    }

    /// A question for a call.
    pub(super) fn ask(&mut self) -> Result<QuestionId, RpcError> {
        self.allocate(Slot::Call)
    }

    /// Where calls go now.
    pub(super) fn target(&self) -> CallTarget {
        match self.bootstrap {
            BootstrapState::Asked(question) => CallTarget::BootstrapAnswer(question),
            BootstrapState::Imported(import) => CallTarget::Import(import),
            BootstrapState::Unasked | BootstrapState::Gone => CallTarget::Import(0),
        }
    }

    /// The import to release, if there is one.
    pub(super) fn release_bootstrap(&mut self) -> Option<u32> {
        match std::mem::replace(&mut self.bootstrap, BootstrapState::Gone) {
            BootstrapState::Imported(import) => Some(import),
            _ => None,
        }
    }

    /// Takes the answer to a question of ours.
    pub(super) fn returned(
        &mut self,
        answer: wire::return_::Reader<'_>,
        message: &Bytes,
    ) -> Result<Returned, RpcError> {
        let id = answer.get_answer_id();
        match self.free(id).ok_or(RpcError::WrongId("answer"))? {
            Slot::Bootstrap => self.bootstrap_returned(answer),
            Slot::Call | Slot::Free => call_returned(answer, message),
        }
    }

    /// Drops a question that the peer will not answer; whether it was a call.
    pub(super) fn forget(&mut self, id: u32) -> bool {
        match self.free(id) {
            Some(Slot::Bootstrap) => {
                self.bootstrap = BootstrapState::Gone;
                false
            }
            freed => freed == Some(Slot::Call),
        }
    }

    fn bootstrap_returned(&mut self, answer: wire::return_::Reader<'_>) -> Result<Returned, RpcError> {
        self.bootstrap = BootstrapState::Gone;
        match answer.which() {
            Ok(wire::return_::Results(payload)) => {
                let capabilities = messages::sender_capabilities(payload.map_err(malformed)?)?;
                let Some(import) = capabilities.first() else {
                    let reason = "bootstrap has no object".to_owned();
                    return Ok(Returned::BootstrapFailed(Exception { reason }));
                };
                self.bootstrap = BootstrapState::Imported(*import);
                Ok(Returned::Bootstrap)
            }
            other => Ok(Returned::BootstrapFailed(exception_of(other)?)),
        }
    }

    fn allocate(&mut self, slot: Slot) -> Result<QuestionId, RpcError> {
        let free = self.slots.iter().position(|slot| *slot == Slot::Free);
        let index = match free {
            Some(index) => index,
            None if self.slots.len() < QUESTIONS_MAX => {
                self.slots.push(Slot::Free);
                self.slots.len() - 1
            }
            None => return Err(RpcError::TooManyQuestions),
        };
        self.slots[index] = slot;
        Ok(QuestionId(index as u32))
    }

    fn free(&mut self, id: u32) -> Option<Slot> {
        let slot = self.slots.get_mut(id as usize)?;
        match std::mem::replace(slot, Slot::Free) {
            Slot::Free => None,
            used => Some(used),
        }
    }
}

fn call_returned(answer: wire::return_::Reader<'_>, message: &Bytes) -> Result<Returned, RpcError> {
    match answer.which() {
        Ok(wire::return_::Results(payload)) => {
            let capabilities = messages::sender_capabilities(payload.map_err(malformed)?)?;
            Ok(Returned::Call { outcome: Ok(Results { message: message.clone() }), capabilities })
        }
        other => Ok(Returned::Call { outcome: Err(exception_of(other)?), capabilities: Vec::new() }),
    }
}

/// The exception that an answer without results stands for.
fn exception_of(
    answer: Result<wire::return_::WhichReader<'_>, capnp::NotInSchema>,
) -> Result<Exception, RpcError> {
    let reason = match answer {
        Ok(wire::return_::Exception(exception)) => messages::reason_of(exception.map_err(malformed)?),
        Ok(wire::return_::Canceled(())) => "call was cancelled".to_owned(),
        _ => "answer in a form that is not supported".to_owned(),
    };
    Ok(Exception { reason })
}
