//! The shapes themselves: bytes of one visitor's connection and what must come of them.

/// One connection's bytes.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bytes: &'static [u8],
    pub(crate) expect: Expect,
}

/// What must come of them.
#[derive(Clone, Copy)]
pub(crate) enum Expect {
    /// This status and this name; the origin is not asked at all.
    Refused(u16, &'static str),
    /// The fault is in content whose head had been forwarded: 400 under this name, and that origin connection is given up.
    Broken(&'static str),
    /// The origin answers exactly these targets.
    Answered(&'static [&'static str]),
    /// The origin answers these targets, and what follows is refused with this status.
    AnsweredThen(&'static [&'static str], u16),
}

use Expect::{Answered, AnsweredThen, Broken, Refused};

/// A head of POST / up to the given lines, and what follows it.
macro_rules! post {
    ($lines:expr, $rest:expr) => {
        concat!("POST /a HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n", $lines, "\r\n\r\n", $rest)
            .as_bytes()
    };
}

/// A request that must never reach an origin as one.
macro_rules! smuggled {
    () => {
        "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"
    };
}

macro_rules! cases {
    ($($name:literal => $bytes:expr, $expect:expr;)*) => {
        &[$(Case { name: $name, bytes: $bytes, expect: $expect },)*]
    };
}

pub(crate) const CASES: &[Case] = cases! {
    // Both framings.
    "CL.TE" => post!("Content-Length: 6\r\nTransfer-Encoding: chunked", concat!("0\r\n\r\n", smuggled!())),
        Refused(400, "framing_both");
    "TE.CL" => post!("Transfer-Encoding: chunked\r\nContent-Length: 4", concat!("2d\r\n", smuggled!(), "\r\n0\r\n\r\n")),
        Refused(400, "framing_both");
    "CL.0 with chunked" => post!("Content-Length: 0\r\nTransfer-Encoding: chunked", concat!("0\r\n\r\n", smuggled!())),
        Refused(400, "framing_both");
    // Transfer-Encoding that some read as chunked and some do not.
    "TE identity" => post!("Transfer-Encoding: identity", smuggled!()), Refused(501, "framing_coding");
    "TE chunked, identity" => post!("Transfer-Encoding: chunked, identity", concat!("0\r\n\r\n", smuggled!())),
        Refused(501, "framing_coding");
    "TE identity, chunked" => post!("Transfer-Encoding: identity, chunked", concat!("0\r\n\r\n", smuggled!())),
        Refused(501, "framing_coding");
    "TE gzip, chunked" => post!("Transfer-Encoding: gzip, chunked", concat!("0\r\n\r\n", smuggled!())),
        Refused(501, "framing_coding");
    "TE xchunked" => post!("Transfer-Encoding: xchunked", smuggled!()), Refused(501, "framing_coding");
    "TE in quotes" => post!("Transfer-Encoding: \"chunked\"", smuggled!()), Refused(501, "framing_coding");
    "TE with parameter" => post!("Transfer-Encoding: chunked;q=1", smuggled!()), Refused(501, "framing_coding");
    "TE empty" => post!("Transfer-Encoding:", smuggled!()), Refused(501, "framing_coding");
    "TE chunked, empty" => post!("Transfer-Encoding: chunked,", smuggled!()), Refused(501, "framing_coding");
    "TE twice" => post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", smuggled!()),
        Refused(501, "framing_coding");
    "TE twice chunked" => post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", smuggled!()),
        Refused(501, "framing_coding");
    "TE with vertical tab" => post!("Transfer-Encoding: \x0bchunked", smuggled!()), Refused(400, "head_malformed");
    "TE with a byte above ASCII" => b"POST /a HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\xff\r\n\r\n0\r\n\r\n",
        Refused(501, "framing_coding");
    "TE behind a space before the colon" => post!("Transfer-Encoding : chunked", smuggled!()),
        Refused(400, "head_malformed");
    "TE behind a tab before the colon" => post!("Transfer-Encoding\t: chunked", smuggled!()),
        Refused(400, "head_malformed");
    "TE folded" => post!("Transfer-Encoding:\r\n chunked", smuggled!()), Refused(400, "head_obs_fold");
    "TE folded by tab" => post!("X: y\r\n\tTransfer-Encoding: chunked", smuggled!()), Refused(400, "head_obs_fold");
    "TE behind a bare LF" => post!("X: y\nTransfer-Encoding: chunked", smuggled!()), Refused(400, "head_bare_lf");
    "TE behind a bare CR" => post!("X: y\rTransfer-Encoding: chunked", smuggled!()), Refused(400, "head_malformed");
    "TE in HTTP/1.0" => b"POST /a HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(501, "framing_coding");
    "TE with an underscore" => post!("Transfer_Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"),
        Answered(&["/a"]);
    // Content-Length.
    "CL twice, different" => post!("Content-Length: 0\r\nContent-Length: 44", smuggled!()),
        Refused(400, "framing_length");
    "CL twice, the same" => post!("Content-Length: 5\r\nContent-Length: 5", "hello"), Refused(400, "framing_length");
    "CL list" => post!("Content-Length: 5, 5", "hello"), Refused(400, "framing_length");
    "CL with a sign" => post!("Content-Length: +5", "hello"), Refused(400, "framing_length");
    "CL negative" => post!("Content-Length: -1", smuggled!()), Refused(400, "framing_length");
    "CL hexadecimal" => post!("Content-Length: 0x5", "hello"), Refused(400, "framing_length");
    "CL with a fraction" => post!("Content-Length: 5.0", "hello"), Refused(400, "framing_length");
    "CL empty" => post!("Content-Length:", smuggled!()), Refused(400, "framing_length");
    "CL with a space inside" => post!("Content-Length: 4 4", smuggled!()), Refused(400, "framing_length");
    "CL above 64 bits" => post!("Content-Length: 18446744073709551621", "hello"), Refused(400, "framing_length");
    "CL behind a space before the colon" => post!("Content-Length : 44", smuggled!()), Refused(400, "head_malformed");
    "CL removed by Connection" => b"POST /a HTTP/1.1\r\nHost: a.test\r\nConnection: close, Content-Length\r\nContent-Length: 44\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\nXX: \r\n\r\n",
        Answered(&["/a"]);
    "GET with content that looks like a request" => b"GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 42\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\nX:\r\n",
        Answered(&["/a"]);
    // Chunks.
    "bare LF in a chunk size" => post!("Transfer-Encoding: chunked", "5\nhello\r\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "bare LF after a chunk" => post!("Transfer-Encoding: chunked", "5\r\nhello\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "chunk longer than it says" => post!("Transfer-Encoding: chunked", "4\r\nhello\r\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "chunk size with 0x" => post!("Transfer-Encoding: chunked", "0x5\r\nhello\r\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "chunk size with a sign" => post!("Transfer-Encoding: chunked", "+5\r\nhello\r\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "chunk size negative" => post!("Transfer-Encoding: chunked", "-5\r\nhello\r\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "chunk size behind a space" => post!("Transfer-Encoding: chunked", " 5\r\nhello\r\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "chunk size empty" => post!("Transfer-Encoding: chunked", "\r\nhello\r\n0\r\n\r\n"), Broken("body_chunked_malformed");
    "chunk size with an underscore" => post!("Transfer-Encoding: chunked", "0_5\r\nhello\r\n0\r\n\r\n"),
        Broken("body_chunked_malformed");
    "chunk size above 64 bits" => post!("Transfer-Encoding: chunked", "100000000000000005\r\nhello\r\n0\r\n\r\n"),
        Broken("body_chunked_malformed");
    "chunk size that wraps 64 bits" => post!("Transfer-Encoding: chunked", "ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        Broken("body_chunked_malformed");
    "bare CR in a chunk extension" => post!("Transfer-Encoding: chunked", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        Broken("body_chunked_malformed");
    "bare LF in a chunk extension" => post!("Transfer-Encoding: chunked", concat!("2;\nxx\r\n2d\r\n0\r\n\r\n", smuggled!())),
        Broken("body_chunked_malformed");
    "NUL in a chunk extension" => post!("Transfer-Encoding: chunked", "5;a=\0\r\nhello\r\n0\r\n\r\n"),
        Broken("body_chunked_malformed");
    "chunk extension" => post!("Transfer-Encoding: chunked", "5;name=\"value\"\r\nhello\r\n0;last\r\n\r\n"),
        Answered(&["/a"]);
    "chunk size with leading zeros" => post!("Transfer-Encoding: chunked", "00005\r\nhello\r\n000\r\n\r\n"),
        Answered(&["/a"]);
    "trailers that would frame and route" => post!("Transfer-Encoding: chunked\r\nTE: trailers", "5\r\nhello\r\n0\r\nContent-Length: 44\r\nTransfer-Encoding: chunked\r\nHost: evil.test\r\nX-Sum: 1\r\n\r\n"),
        Answered(&["/a"]);
    "folded trailer" => post!("Transfer-Encoding: chunked", "0\r\nX: y\r\n z\r\n\r\n"), Broken("body_trailers_malformed");
    "bare LF in trailers" => post!("Transfer-Encoding: chunked", concat!("0\r\nX: y\n\r\n", smuggled!())), Broken("body_trailers_malformed");
    // The request line.
    "HTTP/0.9" => b"GET /smuggled\r\n\r\n", Refused(400, "head_malformed");
    "version 1.2" => b"GET /smuggled HTTP/1.2\r\nHost: a.test\r\n\r\n", Refused(505, "head_version");
    "version 2.0" => b"GET /smuggled HTTP/2.0\r\nHost: a.test\r\n\r\n", Refused(505, "head_version");
    "version in lower case" => b"GET /smuggled http/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_malformed");
    "space in the target" => b"GET /smuggled x HTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_malformed");
    "tabs for spaces" => b"GET\t/smuggled\tHTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_malformed");
    "NUL in the target" => b"GET /smuggled\0 HTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_malformed");
    "bare CR in the request line" => b"GET /a\rX HTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_malformed");
    "fragment in the target" => b"GET /smuggled#x HTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_target");
    "CONNECT" => b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(501, "head_connect");
    "a target without a slash" => b"GET smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_target");
    "another scheme" => b"GET file:///smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400, "head_target");
    "user information in the target" => b"GET http://a.test@evil.test/smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
        Refused(400, "head_host");
    "absolute form with another Host" => b"GET http://a.test/a HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n",
        Answered(&["/a"]);
    // Fields.
    "a line ended by LF alone" => b"GET /smuggled HTTP/1.1\nHost: a.test\n\n", Refused(400, "head_bare_lf");
    "an empty line of LF alone" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\n", Refused(400, "head_bare_lf");
    "bare CR as line end" => b"GET /a HTTP/1.1\rHost: a.test\r\rGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
        Refused(400, "head_malformed");
    "NUL in a value" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\nX: a\0b\r\n\r\n", Refused(400, "head_malformed");
    "NUL in a name" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\nX\0: a\r\n\r\n", Refused(400, "head_malformed");
    "a line without a colon" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\nX\r\n\r\n", Refused(400, "head_malformed");
    "an empty name" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n: x\r\n\r\n", Refused(400, "head_malformed");
    "a space in a name" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\nX Y: x\r\n\r\n", Refused(400, "head_malformed");
    "a folded first field" => b"GET /smuggled HTTP/1.1\r\n Host: a.test\r\n\r\n", Refused(400, "head_obs_fold");
    "no Host" => b"GET /smuggled HTTP/1.1\r\n\r\n", Refused(400, "head_host");
    "two Hosts" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", Refused(400, "head_host");
    "two Hosts in one line" => b"GET /smuggled HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n", Refused(400, "head_host");
    "Host with a path" => b"GET /smuggled HTTP/1.1\r\nHost: a.test/x\r\n\r\n", Refused(400, "head_host");
    "Host with user information" => b"GET /smuggled HTTP/1.1\r\nHost: x@a.test\r\n\r\n", Refused(400, "head_host");
    "129 fields" => FIELDS, Refused(431, "head_too_many_fields");
    // Connections that switch, wait or carry several requests.
    "an upgrade that nobody takes, and the next request" => b"GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nGET /b HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        Answered(&["/a", "/b"]);
    "an upgrade that nobody takes, and a bad request" => b"GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nGET /smuggled HTTP/1.1\nHost: a.test\r\n\r\n",
        AnsweredThen(&["/a"], 400);
    "an upgrade to h2c" => b"GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        Answered(&["/a"]);
    "100-continue" => post!("Expect: 100-continue\r\nContent-Length: 5", "hello"), Answered(&["/a"]);
    "two requests in a row" => b"GET /a HTTP/1.1\r\nHost: a.test\r\n\r\nGET /b HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        Answered(&["/a", "/b"]);
    "a good request and a bad one" => b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1, 1\r\n\r\nx",
        Refused(400, "framing_length");
    "HTTP/1.0 with content" => b"POST /a HTTP/1.0\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhelloGET /smuggled HTTP/1.0\r\n\r\n",
        Answered(&["/a"]);
};

/// One field more than allowed.
const FIELDS: &[u8] = {
    const HEAD: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n";
    const LENGTH: usize = HEAD.len() + 128 * 6 + 2;
    const BYTES: [u8; LENGTH] = {
        let mut bytes = [0; LENGTH];
        let mut at = 0;
        while at < LENGTH {
            bytes[at] = if at < HEAD.len() {
                HEAD[at]
            } else if at >= LENGTH - 2 {
                b"\r\n"[at + 2 - LENGTH]
            } else {
                b"X: y\r\n"[(at - HEAD.len()) % 6]
            };
            at += 1;
        }
        bytes
    };
    &BYTES
};
