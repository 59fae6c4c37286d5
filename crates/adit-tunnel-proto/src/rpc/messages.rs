//! RPC messages, built and read; each is framed, and single-segment where its size was foreseen.

use bytes::{BufMut, Bytes, BytesMut};
use capnp::{
    any_pointer,
    message::{Builder, HeapAllocator, Reader, ReaderOptions},
    serialize::{NoAllocSliceSegments, read_message_from_flat_slice_no_alloc, write_message_to_words},
    struct_list,
};
use capnp_rpc::rpc_capnp as wire;

use super::{AnswerId, Method, QuestionId, RpcError, malformed, questions::CallTarget};

pub(super) fn read(message: &Bytes) -> Result<Reader<NoAllocSliceSegments<'_>>, RpcError> {
    let mut options = ReaderOptions::new();
    // Each pointer is followed once or twice; four times the message is generous.
    options.traversal_limit_in_words(Some(message.len() / 2 + 64)).nesting_limit(32);
    let mut slice: &[u8] = message;
    read_message_from_flat_slice_no_alloc(&mut slice, options).map_err(malformed)
}

pub(super) fn bootstrap(question: QuestionId) -> Bytes {
    let mut message = builder(0);
    message.init_root::<wire::message::Builder<'_>>().init_bootstrap().set_question_id(question.0);
    framed(&message)
}

pub(super) fn call(
    question: QuestionId,
    target: CallTarget,
    method: Method,
    size_hint: usize,
    fill: impl FnOnce(any_pointer::Builder<'_>) -> capnp::Result<()>,
) -> capnp::Result<Bytes> {
    let mut message = builder(size_hint);
    let mut call = message.init_root::<wire::message::Builder<'_>>().init_call();
    call.set_question_id(question.0);
    call.set_interface_id(method.interface);
    call.set_method_id(method.ordinal);
    call.reborrow().init_send_results_to().set_caller(());
    let mut to = call.reborrow().init_target();
    match target {
        CallTarget::Import(import) => to.set_imported_cap(import),
        CallTarget::BootstrapAnswer(answer) => {
            let mut promised = to.init_promised_answer();
            promised.set_question_id(answer.0);
            // An empty list, not a null one (§3.1).
            promised.init_transform(0);
        }
    }
    fill(call.init_params().init_content())?;
    Ok(framed(&message))
}

pub(super) fn results(
    answer: AnswerId,
    fill: impl FnOnce(any_pointer::Builder<'_>) -> capnp::Result<()>,
) -> capnp::Result<Bytes> {
    let mut message = builder(0);
    let mut returned = message.init_root::<wire::message::Builder<'_>>().init_return();
    returned.set_answer_id(answer.0);
    returned.set_release_param_caps(false);
    fill(returned.init_results().init_content())?;
    Ok(framed(&message))
}

pub(super) fn exception(answer: AnswerId, reason: &str, unimplemented: bool) -> Bytes {
    let mut message = builder(reason.len());
    let mut returned = message.init_root::<wire::message::Builder<'_>>().init_return();
    returned.set_answer_id(answer.0);
    returned.set_release_param_caps(false);
    let mut exception = returned.init_exception();
    exception.set_reason(reason);
    exception.set_type(if unimplemented {
        wire::exception::Type::Unimplemented
    } else {
        wire::exception::Type::Failed
    });
    framed(&message)
}

/// The bootstrap's answer: content is capability 0, which is `senderHosted 0`.
///
/// Laid by hand, because a capability pointer cannot be written through the generated setters
/// without a capability runtime; `tests.rs` reads it back through them.
pub(super) fn bootstrap_answer(answer: AnswerId) -> Bytes {
    const STRUCT_1_1: u64 = (1 << 32) | (1 << 48);
    const RETURN: u64 = 3;
    // releaseParamCaps defaults to true and is stored inverted: set, it says false.
    const KEEP_PARAM_CAPS: u64 = 1 << 32;
    const CAPABILITY_0: u64 = 3;
    const ONE_DESCRIPTOR: u64 = 1 | (7 << 32) | (2 << 35);
    const SENDER_HOSTED_0: u64 = 1;
    let words = [
        STRUCT_1_1,
        RETURN,
        (2 << 32) | (1 << 48),
        u64::from(answer.0) | KEEP_PARAM_CAPS,
        0,
        2 << 48,
        CAPABILITY_0,
        ONE_DESCRIPTOR,
        STRUCT_1_1 | (1 << 2),
        SENDER_HOSTED_0,
        0,
    ];
    let mut out = BytesMut::with_capacity(8 + words.len() * 8);
    out.put_u32_le(0);
    out.put_u32_le(words.len() as u32);
    words.into_iter().for_each(|word| out.put_u64_le(word));
    out.freeze()
}

pub(super) fn finish(question: QuestionId) -> Bytes {
    let mut message = builder(0);
    let mut finish = message.init_root::<wire::message::Builder<'_>>().init_finish();
    finish.set_question_id(question.0);
    finish.set_release_result_caps(false);
    framed(&message)
}

pub(super) fn release(import: u32, count: u32) -> Bytes {
    let mut message = builder(0);
    let mut release = message.init_root::<wire::message::Builder<'_>>().init_release();
    release.set_id(import);
    release.set_reference_count(count);
    framed(&message)
}

pub(super) fn abort(reason: &str) -> Bytes {
    let mut message = builder(reason.len());
    message.init_root::<wire::message::Builder<'_>>().init_abort().set_reason(reason);
    framed(&message)
}

pub(super) fn unimplemented(original: wire::message::Reader<'_>) -> capnp::Result<Bytes> {
    let mut message = builder(0);
    message.init_root::<wire::message::Builder<'_>>().set_unimplemented(original)?;
    Ok(framed(&message))
}

pub(super) fn reason_of(exception: wire::exception::Reader<'_>) -> String {
    let reason = exception.get_reason().map(|reason| String::from_utf8_lossy(reason.as_bytes()).into_owned());
    match reason {
        Ok(reason) if !reason.is_empty() => reason.chars().take(REASON_CHARS_MAX).collect(),
        _ => "no reason given".to_owned(),
    }
}

/// Whether a promised answer means the answer itself: its transform has no step but no-ops.
pub(super) fn is_plain(transform: struct_list::Reader<'_, wire::promised_answer::op::Owned>) -> bool {
    transform.len() as usize <= CAPABILITIES_MAX
        && transform.iter().all(|step| matches!(step.which(), Ok(wire::promised_answer::op::Noop(()))))
}

/// Objects of the peer in a payload; a promise of one counts as one (§3.1).
pub(super) fn sender_capabilities(payload: wire::payload::Reader<'_>) -> Result<Vec<u32>, RpcError> {
    let table = payload.get_cap_table().map_err(malformed)?;
    if table.len() as usize > CAPABILITIES_MAX {
        return Err(RpcError::Malformed);
    }
    let imports = table.iter().filter_map(|descriptor| match descriptor.which() {
        Ok(wire::cap_descriptor::SenderHosted(id) | wire::cap_descriptor::SenderPromise(id)) => Some(id),
        _ => None,
    });
    Ok(imports.collect())
}

fn builder(size_hint: usize) -> Builder<HeapAllocator> {
    // Room for the message's own structs beside what the caller foresees.
    let words = u32::try_from(size_hint / 8).unwrap_or(u32::MAX).saturating_add(FIXED_WORDS);
    Builder::new(HeapAllocator::new().first_segment_words(words))
}

fn framed(message: &Builder<HeapAllocator>) -> Bytes {
    write_message_to_words(message).into()
}

/// Room for a message's fixed part; the largest (a registration without its texts) needs about 60.
const FIXED_WORDS: u32 = 128;

/// Longest exception text kept, in characters; it goes into logs.
const REASON_CHARS_MAX: usize = 1024;

/// Most capabilities in a table or steps in a transform; honest peers send one.
const CAPABILITIES_MAX: usize = 16;
