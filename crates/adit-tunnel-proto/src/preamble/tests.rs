use proptest::prelude::*;

use http::{HeaderName, HeaderValue};

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|char| !char.is_whitespace()).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn decode_in_steps(bytes: &[u8], step: usize) -> Result<Option<(Preamble, Bytes)>, PreambleError> {
    let mut decoder = PreambleDecoder::new();
    let mut chunks = bytes.chunks(step);
    while let Some(chunk) = chunks.next() {
        decoder.handle_chunk(Bytes::copy_from_slice(chunk));
        if let Some(preamble) = decoder.poll_preamble()? {
            let mut rest = decoder.into_rest().to_vec();
            rest.extend(chunks.flatten());
            return Ok(Some((preamble, rest.into())));
        }
    }
    Ok(None)
}

fn decode_answer(bytes: Bytes) -> Result<Option<ConnectResponse>, PreambleError> {
    let mut decoder = ResponseDecoder::new();
    decoder.handle_chunk(bytes);
    decoder.poll_response()
}

fn encode_unchecked(plain: &[(&'static str, Option<&[u8]>)], headers: &HeaderMap) -> Bytes {
    encode(&DATA_PREFIX, Root { data: Some(0), text: "" }, &Entries::new(plain, headers.pairs()))
}

fn sample() -> RequestHead {
    let mut head = RequestHead::new(Method::POST, "https://a.example/x?y=1", "a.example");
    head.headers.append("content-type", HeaderValue::from_static("text/plain"));
    head.headers.append("set-cookie", HeaderValue::from_static("a=1"));
    head.headers.append("set-cookie", HeaderValue::from_static("b=2"));
    head.headers.append("x-empty", HeaderValue::from_static(""));
    head.flow_id = Some("flow-7".into());
    head
}

#[test]
fn the_reference_tcp_request_decodes() {
    let vector =
        hex("0a36cd12a13e 3031 0000000006000000 0000000001000200 0200000000000000 050000007a000000 \
         0000000000000000 3132372e302e302e 313a393030320000");
    let (preamble, rest) = decode_in_steps(&vector, 1000).unwrap().unwrap();
    let Preamble::Request(head) = preamble else { panic!("a request") };
    assert_eq!((head.kind, head.dest.as_str()), (ConnectionType::Tcp, "127.0.0.1:9002"));
    assert!(rest.is_empty());
}

#[test]
fn the_tcp_acknowledgement_is_the_reference_bytes() {
    let vector = hex(
        "0a36cd12a13e 3031 0000000004000000 0000000000000200 0000000000000000 0100000007000000 0000000000000200",
    );
    assert_eq!(encode_response(&ConnectResponse::Accepted).unwrap().to_vec(), vector);
    assert_eq!(decode_answer(vector.into()), Ok(Some(ConnectResponse::Accepted)));
}

#[test]
fn a_request_survives_any_split_and_keeps_the_body_behind_it() {
    let head = sample();
    let mut bytes = encode_request(&head).unwrap().to_vec();
    bytes.extend_from_slice(b"body");
    for step in 1..bytes.len() {
        let (preamble, rest) = decode_in_steps(&bytes, step).unwrap().unwrap();
        assert_eq!(preamble, Preamble::Request(Box::new(head.clone())));
        assert_eq!(&rest[..], b"body");
    }
}

#[test]
fn header_keys_are_canonical_on_the_wire() {
    let bytes = encode_request(&sample()).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("HttpHeader:Content-Type\0"));
    assert!(text.contains("HttpHeader:Set-Cookie\0"));
}

#[test]
fn an_rpc_stream_has_no_version_and_keeps_what_follows() {
    let (preamble, rest) = decode_in_steps(&hex("52bb825cdb65 01020304"), 3).unwrap().unwrap();
    assert_eq!(preamble, Preamble::Rpc);
    assert_eq!(&rest[..], &[1, 2, 3, 4]);
}

#[test]
fn an_unknown_signature_is_refused_at_its_first_wrong_byte() {
    let mut decoder = PreambleDecoder::new();
    decoder.handle_chunk(Bytes::from_static(&[0x0a, 0x36, 0xcd]));
    assert_eq!(decoder.poll_preamble(), Ok(None));
    decoder.handle_chunk(Bytes::from_static(&[0x13]));
    assert_eq!(decoder.poll_preamble(), Err(PreambleError::UnknownSignature));
}

#[test]
fn a_missing_host_is_taken_from_the_absolute_dest() {
    let mut head = sample();
    head.host.clear();
    let bytes = encode_request(&head).unwrap();
    let Preamble::Request(back) = decode_in_steps(&bytes, 4096).unwrap().unwrap().0 else {
        panic!("a request")
    };
    assert_eq!(back.host, "a.example");
}

#[test]
fn failure_and_rate_limit_cross_the_wire() {
    for rate_limited in [false, true] {
        let failed = ConnectResponse::Failed { text: "no route to origin".into(), rate_limited };
        assert_eq!(decode_answer(encode_response(&failed).unwrap()), Ok(Some(failed)));
    }
    let silent = ConnectResponse::Failed { text: String::new(), rate_limited: false };
    let back = decode_answer(encode_response(&silent).unwrap());
    assert!(matches!(back, Ok(Some(ConnectResponse::Failed { .. }))), "{back:?}");
}

#[test]
fn too_many_headers_are_refused_by_both_ends() {
    let mut head = sample();
    for index in 0..METADATA_ENTRIES_MAX {
        head.headers.append("x-many", HeaderValue::from(index));
    }
    assert_eq!(encode_request(&head), Err(PreambleError::TooManyEntries));
    let bytes = encode_unchecked(&[], &head.headers);
    assert_eq!(decode_in_steps(&bytes, 100_000), Err(PreambleError::TooManyEntries));
}

#[test]
fn a_header_key_with_two_colons_is_refused() {
    let bytes = encode_unchecked(&[("HttpHeader:A:B", Some(b"x"))], &HeaderMap::new());
    assert_eq!(decode_in_steps(&bytes, 100_000), Err(PreambleError::BadHeader));
}

#[test]
fn a_header_value_with_a_line_break_is_refused() {
    let bytes = encode_unchecked(&[("HttpHeader:A", Some(b"x\r\nEvil: 1"))], &HeaderMap::new());
    assert_eq!(decode_in_steps(&bytes, 100_000), Err(PreambleError::BadHeader));
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let name = "[a-z][a-z0-9-]{0,20}";
    proptest::collection::vec((name, proptest::collection::vec(0x20u8..0x7f, 0..40)), 0..20).prop_map(|all| {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(&value).unwrap(),
            );
        }
        headers
    })
}

proptest! {
    #[test]
    fn requests_round_trip(
        headers in any_headers(),
        dest in "[ -~]{0,60}",
        host in "[a-z.]{1,30}",
        flow in proptest::option::of("[a-z0-9]{0,12}"),
        websocket in any::<bool>(),
        step in 1usize..64,
    ) {
        let kind = if websocket { ConnectionType::Websocket } else { ConnectionType::Http };
        let head = RequestHead { kind, dest, method: Method::PATCH, host, headers, flow_id: flow };
        let bytes = encode_request(&head).unwrap();
        let (back, rest) = decode_in_steps(&bytes, step).unwrap().unwrap();
        prop_assert_eq!(back, Preamble::Request(Box::new(head)));
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn responses_round_trip(headers in any_headers(), status in 100u16..1000) {
        let head = ResponseHead { status: StatusCode::from_u16(status).unwrap(), headers };
        let response = ConnectResponse::Head(head);
        prop_assert_eq!(decode_answer(encode_response(&response).unwrap()), Ok(Some(response)));
    }

    #[test]
    fn damaged_heads_never_panic(at in 0usize..400, value in any::<u8>(), cut in 0usize..400) {
        let mut bytes = encode_request(&sample()).unwrap().to_vec();
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(cut.max(1));
        let _ = decode_in_steps(&bytes, 17);
        let _ = decode_answer(bytes.into());
    }

    #[test]
    fn arbitrary_messages_never_panic(words in proptest::collection::vec(any::<u64>(), 1..60)) {
        let mut bytes = DATA_PREFIX.to_vec();
        bytes.extend(0u32.to_le_bytes());
        bytes.extend((words.len() as u32).to_le_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let _ = decode_in_steps(&bytes, 4096);
        let _ = decode_answer(bytes.into());
    }
}

#[test]
fn our_own_heads_and_the_stock_connectors_lie_flat() {
    let request = encode_request(&sample()).unwrap();
    assert!(Flat::read(&request[DATA_PREFIX.len()..]).is_some());
    let stock = hex("0000000006000000 0000000001000200 0200000000000000 050000007a000000 \
                     0000000000000000 3132372e302e302e 313a393030320000");
    assert!(Flat::read(&stock).is_some());
}

#[test]
fn pointers_that_all_lead_to_the_same_text_are_not_followed_without_end() {
    let long = [b'x'; 4000];
    let entries: Vec<_> = (0..60).map(|at| ("a", (at == 0).then_some(&long[..]).or(Some(b"")))).collect();
    let bytes = encode_unchecked(&entries, &HeaderMap::new());
    let mut message = bytes[DATA_PREFIX.len()..].to_vec();
    // Table, root pointer, data, two pointers, list tag; then each entry's key and value.
    let first = 8 * 7;
    let word: [u8; 8] = message[first..first + 8].try_into().unwrap();
    let word = u64::from_le_bytes(word);
    for at in 1..60 {
        let moved = word - ((2 * at) << 2);
        message[first + 16 * at as usize..][..8].copy_from_slice(&moved.to_le_bytes());
    }
    let message = Bytes::from(message);
    assert!(Flat::read(&message).is_none());
    assert_eq!(decode_request(&message), Err(PreambleError::Malformed("not a valid message")));
}

proptest! {
    #[test]
    fn what_lies_flat_means_what_the_general_reader_says(
        headers in any_headers(),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..3),
    ) {
        let head = RequestHead { headers, ..sample() };
        let mut request = encode_request(&head).unwrap()[DATA_PREFIX.len()..].to_vec();
        let response = ResponseHead { status: StatusCode::OK, headers: head.headers };
        let mut response = encode_response(&ConnectResponse::Head(response)).unwrap()[DATA_PREFIX.len()..].to_vec();
        for (at, value) in damage {
            // Not in the frame's table, which has been checked by then.
            for message in [&mut request, &mut response] {
                let at = 8 + at % (message.len() - 8);
                message[at] = value;
            }
        }
        let (request, response) = (Bytes::from(request), Bytes::from(response));
        if Flat::read(&request).is_some() {
            prop_assert_eq!(decode_request(&request), decode_general_request(&request));
        }
        if Flat::read(&response).is_some() {
            prop_assert_eq!(decode_response(&response), decode_general_response(&response));
        }
    }

    #[test]
    fn lines_take_what_a_map_takes(
        name in proptest::collection::vec(prop_oneof![any::<u8>(), b'!'..=b'~'], 0..4),
        value in proptest::collection::vec(prop_oneof![any::<u8>(), b' '..=b'~'], 0..4),
    ) {
        let message = Bytes::from([name.as_slice(), value.as_slice()].concat());
        let mut lines = HeaderLines::of(&message);
        let taken = lines.push(&message[..name.len()], &message[name.len()..]);
        let (as_name, as_value) = (HeaderName::from_bytes(&name), HeaderValue::from_bytes(&value));
        prop_assert_eq!(taken, as_name.is_ok() && as_value.is_ok());
        if taken {
            let map = lines.into_map();
            prop_assert_eq!(map.iter().next(), Some((&as_name.unwrap(), &as_value.unwrap())));
        }
    }
}
