use proptest::prelude::*;

use super::*;
use crate::generated::tunnelrpc_capnp as schema;

const ECHO: Method = Method { interface: 7, ordinal: 1 };

fn exchange(a: &mut Peer, b: &mut Peer) {
    loop {
        let (to_b, to_a) = (a.poll_transmit(), b.poll_transmit());
        if to_a.is_none() && to_b.is_none() {
            return;
        }
        if let Some(message) = to_b {
            b.handle_message(&message).unwrap();
        }
        if let Some(message) = to_a {
            a.handle_message(&message).unwrap();
        }
    }
}

fn call(peer: &mut Peer, text: &[u8]) -> QuestionId {
    peer.call(ECHO, text.len(), |params| {
        params.init_as::<schema::update_local_configuration_params::Builder<'_>>().set_config(text);
        Ok(())
    })
    .unwrap()
}

fn echo_call(peer: &mut Peer) {
    let Some(RpcEvent::Call(call)) = peer.poll_event() else { panic!("a call") };
    assert_eq!(call.method, ECHO);
    let text = call
        .read::<schema::update_local_configuration_params::Owned, _>(|params| {
            Ok(params.get_config()?.to_vec())
        })
        .unwrap();
    peer.respond(call.id, |results| {
        results.init_as::<schema::update_local_configuration_params::Builder<'_>>().set_config(&text);
        Ok(())
    })
    .unwrap();
}

fn echoed(peer: &mut Peer) -> Vec<u8> {
    let Some(RpcEvent::Returned { outcome, .. }) = peer.poll_event() else { panic!("an answer") };
    outcome
        .unwrap()
        .read::<schema::update_local_configuration_params::Owned, _>(|results| {
            Ok(results.get_config()?.to_vec())
        })
        .unwrap()
}

#[test]
fn the_first_call_is_pipelined_on_the_bootstrap_answer() {
    let (mut client, mut server) = (Peer::new(), Peer::new());
    call(&mut client, b"one");
    let sent: Vec<Bytes> = std::iter::from_fn(|| client.poll_transmit()).collect();
    assert_eq!(sent.len(), 2, "bootstrap and call leave together");
    for message in &sent {
        server.handle_message(message).unwrap();
    }
    echo_call(&mut server);
    exchange(&mut client, &mut server);
    assert_eq!(echoed(&mut client), b"one");
}

#[test]
fn answers_may_come_before_the_bootstraps() {
    let (mut client, mut server) = (Peer::new(), Peer::new());
    call(&mut client, b"one");
    while let Some(message) = client.poll_transmit() {
        server.handle_message(&message).unwrap();
    }
    echo_call(&mut server);
    let bootstrap = server.poll_transmit().unwrap();
    let answer = server.poll_transmit().unwrap();
    client.handle_message(&answer).unwrap();
    client.handle_message(&bootstrap).unwrap();
    assert_eq!(echoed(&mut client), b"one");
    exchange(&mut client, &mut server);
}

#[test]
fn later_calls_go_to_the_import_and_recycle_question_1() {
    let (mut client, mut server) = (Peer::new(), Peer::new());
    for text in [&b"one"[..], b"two", b"three"] {
        let question = call(&mut client, text);
        exchange(&mut client, &mut server);
        echo_call(&mut server);
        exchange(&mut client, &mut server);
        assert_eq!(echoed(&mut client), text);
        assert!(question.0 <= 1, "{question:?}");
    }
}

#[test]
fn the_hand_laid_bootstrap_answer_reads_back() {
    let message = messages::bootstrap_answer(AnswerId(9));
    let reader = messages::read(&message).unwrap();
    let root: wire::message::Reader<'_> = reader.get_root().unwrap();
    let Ok(wire::message::Return(Ok(answer))) = root.which() else { panic!("a return") };
    assert_eq!(answer.get_answer_id(), 9);
    assert!(!answer.get_release_param_caps());
    assert!(!answer.get_no_finish_needed());
    let Ok(wire::return_::Results(Ok(payload))) = answer.which() else { panic!("results") };
    assert_eq!(messages::sender_capabilities(payload).unwrap(), [0]);
    assert!(!payload.get_content().is_null());
}

#[test]
fn shutdown_releases_and_aborts_and_the_peer_sees_a_normal_end() {
    let (mut client, mut server) = (Peer::new(), Peer::new());
    call(&mut client, b"x");
    exchange(&mut client, &mut server);
    echo_call(&mut server);
    exchange(&mut client, &mut server);
    echoed(&mut client);
    client.shutdown();
    exchange(&mut client, &mut server);
    let Some(RpcEvent::Aborted { reason }) = server.poll_event() else { panic!("an abort") };
    assert_eq!(reason, SHUTDOWN_REASON);
    assert!(client.is_closed() && server.is_closed());
}

#[test]
fn a_call_on_an_unknown_object_is_an_exception() {
    let (mut client, mut server) = (Peer::new(), Peer::new());
    let message =
        messages::call(QuestionId(5), questions::CallTarget::Import(3), ECHO, 0, |_| Ok(())).unwrap();
    server.handle_message(&message).unwrap();
    assert!(server.poll_event().is_none());
    assert!(server.poll_transmit().is_some());
    // Its finish is accepted, a second one is not.
    server.handle_message(&messages::finish(QuestionId(5))).unwrap();
    assert_eq!(server.handle_message(&messages::finish(QuestionId(5))), Err(RpcError::WrongId("question")));
    assert!(server.is_closed());
    // The abort reaches the other end as an event.
    client.handle_message(&server.poll_transmit().unwrap()).unwrap();
    assert!(matches!(client.poll_event(), Some(RpcEvent::Aborted { .. })));
}

#[test]
fn unanswered_calls_are_bounded() {
    let mut server = Peer::new();
    server.handle_message(&messages::bootstrap(QuestionId(0))).unwrap();
    let target = questions::CallTarget::BootstrapAnswer(QuestionId(0));
    for question in 1..=ANSWERS_MAX as u32 {
        let message = messages::call(QuestionId(question), target, ECHO, 0, |_| Ok(())).unwrap();
        let outcome = server.handle_message(&message);
        assert_eq!(outcome.is_err(), question == ANSWERS_MAX as u32, "{question}");
    }
}

#[test]
fn a_finished_call_still_gets_its_return_and_frees_its_id() {
    let mut server = Peer::new();
    server.handle_message(&messages::bootstrap(QuestionId(0))).unwrap();
    let target = questions::CallTarget::BootstrapAnswer(QuestionId(0));
    let message = messages::call(QuestionId(1), target, ECHO, 0, |_| Ok(())).unwrap();
    server.handle_message(&message).unwrap();
    server.handle_message(&messages::finish(QuestionId(1))).unwrap();
    let Some(RpcEvent::Call(call)) = server.poll_event() else { panic!("a call") };
    while server.poll_transmit().is_some() {}
    server.respond(call.id, |_| Ok(())).unwrap();
    assert!(server.poll_transmit().is_some());
    server.handle_message(&message).unwrap();
}

#[test]
fn third_party_messages_are_answered_unimplemented_with_a_copy() {
    let mut server = Peer::new();
    let mut builder = capnp::message::Builder::new_default();
    builder.init_root::<wire::message::Builder<'_>>().init_resolve().set_promise_id(3);
    server.handle_message(&capnp::serialize::write_message_to_words(&builder).into()).unwrap();
    let answer = server.poll_transmit().unwrap();
    let reader = messages::read(&answer).unwrap();
    let root: wire::message::Reader<'_> = reader.get_root().unwrap();
    let Ok(wire::message::Unimplemented(Ok(inner))) = root.which() else { panic!("unimplemented") };
    let Ok(wire::message::Resolve(Ok(resolve))) = inner.which() else { panic!("a copy") };
    assert_eq!(resolve.get_promise_id(), 3);
    // Two such ends do not answer each other for ever.
    server.handle_message(&answer).unwrap();
    assert!(server.poll_transmit().is_none());
}

proptest! {
    #[test]
    fn damaged_messages_never_panic(at in 0usize..200, value in any::<u8>(), which in 0usize..4) {
        let target = questions::CallTarget::BootstrapAnswer(QuestionId(0));
        let message = match which {
            0 => messages::bootstrap(QuestionId(0)),
            1 => messages::call(QuestionId(1), target, ECHO, 0, |_| Ok(())).unwrap(),
            2 => messages::bootstrap_answer(AnswerId(0)),
            _ => messages::finish(QuestionId(0)),
        };
        let mut bytes = message.to_vec();
        let at = 8 + at % (bytes.len() - 8);
        bytes[at] = value;
        let mut peer = Peer::new();
        call(&mut peer, b"x");
        let _ = peer.handle_message(&bytes.into());
    }

    #[test]
    fn arbitrary_messages_never_panic(words in proptest::collection::vec(any::<u64>(), 1..40)) {
        let mut bytes = 0u32.to_le_bytes().to_vec();
        bytes.extend((words.len() as u32).to_le_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let _ = Peer::new().handle_message(&bytes.into());
    }
}
