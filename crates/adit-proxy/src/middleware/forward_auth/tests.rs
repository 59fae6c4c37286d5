use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::tests::{Echo, content, ctx, request, request_with};
use super::super::{Layer, run};
use super::*;

/// An authentication server that gives one answer to everybody; what it was asked, head and content, is kept.
struct AuthServer {
    address: String,
    asked: Arc<Mutex<String>>,
}

impl AuthServer {
    async fn answering(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/verify?rd=1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = vec![0; 64 * 1024];
                let mut length = 0;
                while !is_whole(&bytes[..length]) {
                    match stream.read(&mut bytes[length..]).await {
                        Ok(read @ 1..) => length += read,
                        _ => break,
                    }
                }
                *seen.lock().unwrap() = String::from_utf8_lossy(&bytes[..length]).to_ascii_lowercase();
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, asked }
    }

    fn config(&self) -> dynamic::ForwardAuth {
        dynamic::ForwardAuth { address: self.address.clone(), ..Default::default() }
    }

    fn asked(&self) -> String {
        self.asked.lock().unwrap().clone()
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, content)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    content.len() >= length.unwrap_or(0)
}

async fn through(config: &dynamic::ForwardAuth, target: &Echo, request: Request) -> (Response, Ctx) {
    let chain = [Layer::around("m", ForwardAuth::new(config).unwrap())];
    let mut ctx = ctx();
    let response = run(&chain, target, request, &mut ctx).await;
    (response, ctx)
}

const OK: &str = "HTTP/1.1 200 OK\r\nRemote-User: alice\r\nX-Secret: s\r\nSet-Cookie: sess=1; Path=/\r\n\
                  Set-Cookie: other=1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn the_server_is_told_what_was_asked_and_the_upstream_only_what_is_listed() {
    let server = AuthServer::answering(OK).await;
    let config = dynamic::ForwardAuth {
        auth_response_headers: vec!["Remote-User".to_owned(), "Remote-Groups".to_owned()],
        header_field: Some("Remote-User".to_owned()),
        ..server.config()
    };
    let mut asked = request_with(
        "/app?x=1",
        &[
            ("remote-user", "root"),
            ("remote-groups", "admins"),
            ("cookie", "a=1"),
            ("upgrade-insecure-requests", "1"),
        ],
    );
    asked.method = Method::POST;
    asked.body = Body::full("abc");
    let target = Echo::default();
    let (response, ctx) = through(&config, &target, asked).await;
    assert_eq!((response.status.as_u16(), ctx.log.user.as_deref()), (200, Some("alice")));
    let told = server.asked();
    assert!(told.starts_with("get /verify?rd=1 http/1.1\r\n"), "{told}");
    for field in [
        "x-forwarded-method: post",
        "x-forwarded-proto: http",
        "x-forwarded-host: example.com",
        "x-forwarded-uri: /app?x=1",
        "x-forwarded-for: 127.0.0.1",
        "cookie: a=1",
    ] {
        assert!(told.contains(&format!("\r\n{field}\r\n")), "{field} in {told}");
    }
    assert!(!told.contains("content-length"), "{told}");
    let seen = target.seen();
    assert_eq!(seen.headers["remote-user"], "alice");
    assert!(!seen.headers.contains_key("remote-groups") && !seen.headers.contains_key("x-secret"));
    assert!(!response.headers.contains_key("set-cookie"));
    assert_eq!(target.seen_content(), ["abc"]);
}

#[tokio::test]
async fn listed_request_fields_and_fields_by_pattern() {
    let server = AuthServer::answering(OK).await;
    let config = dynamic::ForwardAuth {
        auth_request_headers: vec!["Cookie".to_owned()],
        auth_response_headers_regex: Some("^Remote-".to_owned()),
        add_auth_cookies_to_response: vec!["sess".to_owned()],
        ..server.config()
    };
    let target = Echo::default().with("set-cookie", "sess=upstream").with("set-cookie", "own=1");
    let asked = request_with("/", &[("cookie", "a=1"), ("x-other", "1"), ("remote-email", "root@x")]);
    let (response, _) = through(&config, &target, asked).await;
    assert!(server.asked().contains("cookie: a=1") && !server.asked().contains("x-other"));
    let seen = target.seen();
    assert_eq!(seen.headers["remote-user"], "alice");
    assert!(!seen.headers.contains_key("remote-email"));
    let cookies: Vec<_> = response.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["own=1", "sess=1; Path=/"]);
}

#[tokio::test]
async fn forwarded_fields_follow_the_operators_trust() {
    let server = AuthServer::answering(OK).await;
    let asked = || {
        request_with(
            "/in",
            &[
                ("x-forwarded-proto", "https"),
                ("x-forwarded-uri", "/outer"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-prefix", "/p"),
            ],
        )
    };
    let told_with = async |trust: Option<bool>| {
        let config = dynamic::ForwardAuth { trust_forward_header: trust, ..server.config() };
        through(&config, &Echo::default(), asked()).await;
        server.asked()
    };
    let trusted = told_with(Some(true)).await;
    assert!(trusted.contains("x-forwarded-uri: /outer") && trusted.contains("x-forwarded-proto: https"));
    assert!(
        trusted.contains("x-forwarded-for: 1.2.3.4, 127.0.0.1") && trusted.contains("x-forwarded-port: 443")
    );
    let listed = dynamic::ForwardAuth {
        trust_forward_header: Some(true),
        auth_request_headers: ["X-Forwarded-For", "X-Forwarded-Proto"].map(str::to_owned).into(),
        ..server.config()
    };
    through(&listed, &Echo::default(), asked()).await;
    let told = server.asked();
    assert!(told.contains("x-forwarded-for: 1.2.3.4, 127.0.0.1\r\n"), "no line twice: {told}");
    assert_eq!(told.matches("x-forwarded-proto:").count(), 1, "{told}");
    let distrusted = told_with(Some(false)).await;
    assert!(distrusted.contains("x-forwarded-uri: /in") && !distrusted.contains("x-forwarded-prefix"));
    assert!(
        distrusted.contains("x-forwarded-for: 127.0.0.1\r\n") && distrusted.contains("x-forwarded-port: 80")
    );
    let mixed = told_with(None).await;
    assert!(mixed.contains("x-forwarded-uri: /in") && mixed.contains("x-forwarded-prefix: /p"));
    assert!(mixed.contains("x-forwarded-for: 127.0.0.1\r\n"));
}

#[tokio::test]
async fn a_refusal_is_the_servers_own_answer_with_an_absolute_location() {
    let server = AuthServer::answering(
        "HTTP/1.1 302 Found\r\nLocation: /login\r\nX-Why: no\r\nContent-Length: 6\r\nConnection: close\r\n\r\ndenied",
    )
    .await;
    let (response, ctx) = through(&server.config(), &Echo::default(), request("/")).await;
    let base = server.address.strip_suffix("/verify?rd=1").unwrap();
    assert_eq!((response.status.as_u16(), ctx.log.refusal), (302, Some("forward_auth_refused")));
    assert_eq!(response.headers["location"], format!("{base}/login"));
    assert_eq!(response.headers["x-why"], "no");
    assert!(!response.headers.contains_key("connection"));
    assert_eq!(content(response.body).await, b"denied");
    let kept = dynamic::ForwardAuth { preserve_location_header: true, ..server.config() };
    assert_eq!(through(&kept, &Echo::default(), request("/")).await.0.headers["location"], "/login");
}

#[tokio::test]
async fn whoever_is_unknown_can_be_sent_to_sign_in() {
    let server =
        AuthServer::answering("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    let config =
        dynamic::ForwardAuth { auth_signin_url: Some("https://login.test/in".to_owned()), ..server.config() };
    let (response, _) = through(&config, &Echo::default(), request("/")).await;
    assert_eq!(response.status.as_u16(), 302);
    assert_eq!(response.headers["location"], "https://login.test/in");
    assert!(response.headers.len() == 1 && response.body.is_empty());
    assert_eq!(through(&server.config(), &Echo::default(), request("/")).await.0.status.as_u16(), 401);
}

#[tokio::test]
async fn without_an_answer_nobody_passes() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let broken =
        AuthServer::answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nshort").await;
    for address in [format!("http://{closed}/"), broken.address.clone()] {
        let config = dynamic::ForwardAuth { address, ..Default::default() };
        let (response, ctx) = through(&config, &Echo::default(), request("/")).await;
        assert_eq!((response.status.as_u16(), ctx.log.refusal), (500, Some("forward_auth_failed")));
    }
}

#[tokio::test]
async fn the_server_sees_the_content_if_it_is_to_and_only_up_to_the_limit() {
    let server = AuthServer::answering(OK).await;
    let config = dynamic::ForwardAuth {
        forward_body: true,
        preserve_request_method: true,
        body_bytes_max: Some(3),
        ..server.config()
    };
    let asked = |text: &str| {
        let mut request = request("/");
        request.method = Method::PUT;
        request.body = super::super::tests::streamed(text);
        request
    };
    let target = Echo::default();
    assert_eq!(through(&config, &target, asked("abc")).await.0.status.as_u16(), 200);
    assert!(
        server.asked().starts_with("put ") && server.asked().ends_with("\r\n\r\nabc"),
        "{}",
        server.asked()
    );
    assert_eq!(target.seen_content(), ["abc"]);
    let (response, ctx) = through(&config, &target, asked("abcd")).await;
    assert_eq!((response.status.as_u16(), ctx.log.refusal), (401, Some("forward_auth_body_too_large")));
    let unlimited = dynamic::ForwardAuth { body_bytes_max: None, ..config };
    let mut large = request("/");
    large.body = Body::stream(Silent, Length::Known((16 << 20) + 1));
    let (response, ctx) = through(&unlimited, &target, large).await;
    assert_eq!((response.status.as_u16(), ctx.log.refusal), (413, Some("forward_auth_body_over_cap")));
}

#[tokio::test]
async fn what_frames_the_servers_answer_does_not_frame_the_request() {
    let server = AuthServer::answering(
        "HTTP/1.1 200 OK\r\nHost: evil\r\nRemote-User: alice\r\nUpgrade: x\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n",
    )
    .await;
    let by_name = dynamic::ForwardAuth {
        auth_response_headers: ["Content-Length", "Host", "Upgrade", "Remote-User"].map(str::to_owned).into(),
        ..server.config()
    };
    let by_pattern =
        dynamic::ForwardAuth { auth_response_headers_regex: Some(".*".to_owned()), ..server.config() };
    for config in [by_name, by_pattern] {
        let target = Echo::default();
        through(&config, &target, request("/")).await;
        let seen = target.seen();
        let names: Vec<_> = seen.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["remote-user"]);
    }
}

/// A visitor that has announced content and sends none.
struct Silent;

impl crate::body::BodySource for Silent {
    fn poll_chunks(
        &mut self,
        _cx: &mut std::task::Context<'_>,
        _out: &mut crate::body::Batch,
    ) -> std::task::Poll<Result<bool, BodyError>> {
        std::task::Poll::Pending
    }
}
