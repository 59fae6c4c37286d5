//! Origins whose answers two parsers could read in two ways: what a visitor gets is one answer or a failure, and never what
//! was meant for someone else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use crate::ingress::Ingress;
use crate::support::http_get;
use crate::support::visitor::Visitor;

/// An answer that nobody asked for.
macro_rules! poison {
    () => {
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    };
}

/// What an origin says and what its visitor may get for it.
const SHAPES: &[(&str, &str, u16)] = &[
    (
        "one answer and another behind it",
        concat!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", poison!()),
        200,
    ),
    ("a 204 with content", concat!("HTTP/1.1 204 No Content\r\n\r\n", poison!()), 204),
    ("a 304 with content", concat!("HTTP/1.1 304 Not Modified\r\n\r\n", poison!()), 304),
    (
        "both framings",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        200,
    ),
    ("the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", 200),
    ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", 502),
    ("a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", 502),
    ("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", 502),
    ("an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502),
    ("a folded field", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", 200),
    ("lines that end in LF", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 502),
    ("CR inside a value", "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok", 502),
    ("NUL inside a value", "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok", 502),
    ("a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", 200),
    (
        "a switch that nobody asked for",
        concat!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", poison!()),
        502,
    ),
    ("no HTTP at all", "SSH-2.0-OpenSSH_9.2\r\n\r\n\r\n", 502),
    ("HTTP/2 on a connection for HTTP/1.1", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 502),
    ("nothing", "", 502),
];

#[test]
fn ambiguous_answers_of_origins_reach_nobody_else() {
    let said = Arc::new(Mutex::new(String::new()));
    let origin = liar(Arc::clone(&said));
    let adit = Ingress::to(&format!("http://{origin}")).start();
    let web = adit.entry_point("web");
    let mut failures = Vec::new();
    for (name, answer, status) in SHAPES {
        *said.lock().unwrap_or_else(PoisonError::into_inner) = (*answer).to_owned();
        let mut visitor = Visitor::connect(web).expect("accepted");
        let seen = visitor.get("a.test", "/first").map(|seen| (seen.status, seen.text));
        *said.lock().unwrap_or_else(PoisonError::into_inner) =
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext".to_owned();
        let next = http_get(web, "/next").map(|next| (next.status, next.body));
        let is_right = seen.as_ref().is_ok_and(|(got, text)| got == status && !text.contains("poison"));
        if !is_right || next != Some((200, "next".to_owned())) {
            failures.push(format!("{name}: {seen:?}, expected {status}; the next visitor got {next:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Answers every request with what it is told to say, all at once, and keeps the connection open unless that is nothing.
fn liar(said: Arc<Mutex<String>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer) {
                    let answer = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
