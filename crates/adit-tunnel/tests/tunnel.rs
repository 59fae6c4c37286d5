//! The connector against the edge, both ours, over loopback.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
};

use adit_config::Secret;
use adit_tunnel::{
    ConnectionPhase, Connector, ConnectorError, EdgeLane, Loss, OpenError, Opened, ResponseError,
    StreamError, TlsError,
};
use adit_tunnel_proto::ConnectionType;
use bytes::Bytes;
use http::StatusCode;
use support::{
    Identity, Origin, PATIENCE, RunningConnector, RunningEdge, TUNNEL, counter, eventually, fetch, grant,
    options, read_all, request, write,
};
use tokio::{sync::oneshot, time::timeout};

async fn pair(connections: u8) -> (Identity, RunningEdge, RunningConnector) {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let connector = RunningConnector::start(options(&identity, edge.address, connections));
    connector.wait_ready(usize::from(connections)).await;
    edge.wait_connections(usize::from(connections)).await;
    (identity, edge, connector)
}

#[tokio::test]
async fn a_request_crosses_and_comes_back() {
    let (_identity, edge, _connector) = pair(1).await;
    let (head, body) = fetch(&edge.handle, "x?y=1").await;
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(head.headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(body, b"GET a.home.example http://a.home.example/x?y=1");
}

#[tokio::test]
async fn requests_prefer_a_connection_of_their_own_lane_until_it_has_much_to_do() {
    let (told, ends): (Vec<_>, Vec<_>) = (0..2).map(|_| lane()).unzip();
    let identity = Identity::new();
    let edge = RunningEdge::start_on(&identity, &told);
    let connector = RunningConnector::start(options(&identity, edge.address, 2));
    connector.wait_ready(2).await;
    edge.wait_connections(2).await;
    assert!(told.iter().all(|lane| lane.connections.load(Ordering::Relaxed) == 1));
    let open = |lane: usize| {
        let handle = edge.handle.clone();
        // Answered, because a connection that does not answer is not preferred.
        let opening = async move {
            let Opened { send, response, connection } = handle.open(TUNNEL, &request("hang")).await.unwrap();
            let (_, body) = response.recv().await.unwrap();
            (connection.index, (send, body))
        };
        told[lane].runtime.spawn(opening)
    };
    let mut held = [Vec::new(), Vec::new()];
    for _ in 0..17 {
        for (lane, held) in held.iter_mut().enumerate() {
            held.push(open(lane).await.unwrap());
        }
    }
    let [own, other] = [0, 1].map(|lane: usize| held[lane][0].0);
    assert_ne!(own, other);
    for (lane, index) in [own, other].into_iter().enumerate() {
        assert!(held[lane].iter().all(|(chosen, _)| *chosen == index), "lane {lane}");
    }
    held[1].clear();
    eventually("requests given up", || {
        let tunnels = edge.handle.tunnels();
        tunnels[0].connections.iter().all(|connection| connection.index != other || connection.in_flight == 0)
    })
    .await;
    assert_eq!(open(0).await.unwrap().0, other);
    drop(ends);
}

/// A runtime of one thread, until the other half is dropped.
fn lane() -> (EdgeLane, oneshot::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lane = EdgeLane { runtime: runtime.handle().clone(), connections: Arc::default() };
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || drop(runtime.block_on(ended)));
    (lane, end)
}

#[tokio::test]
async fn hosts_of_the_local_rules_are_learnt_within_the_grant() {
    let (_identity, edge, connector) = pair(1).await;
    let mut learnt = edge.handle.learnt_hostnames();
    let expect = |host: &str| vec![(TUNNEL, vec![host.parse().unwrap()])];
    timeout(PATIENCE, learnt.wait_for(|learnt| **learnt == expect("a.home.example"))).await.unwrap().unwrap();
    let json = br#"{"ingress":[{"hostname":"b.home.example"},{"hostname":"evil.example"}]}"#;
    connector.handle.set_local_configuration(Bytes::from_static(json));
    timeout(PATIENCE, learnt.wait_for(|learnt| **learnt == expect("b.home.example"))).await.unwrap().unwrap();
}

#[tokio::test]
async fn bodies_of_any_size_stream_both_ways() {
    let (_identity, edge, _connector) = pair(1).await;
    let opened = edge.handle.open(TUNNEL, &request("echo")).await.unwrap();
    let mut send = opened.send;
    let chunk = Bytes::from(vec![0x5a; 1 << 20]);
    let expected = 24 * chunk.len();
    let sender = tokio::spawn(async move {
        for _ in 0..24 {
            write(&mut send, chunk.clone()).await.unwrap();
        }
        send.finish();
    });
    let (_, mut body) = opened.response.recv().await.unwrap();
    let echoed = read_all(&mut body).await.unwrap();
    sender.await.unwrap();
    assert_eq!(echoed.len(), expected);
    assert!(echoed.iter().all(|byte| *byte == 0x5a));
}

#[tokio::test]
async fn a_websocket_request_carries_bytes_both_ways_before_either_side_ends() {
    let (_identity, edge, _connector) = pair(1).await;
    let mut head = request("echo");
    head.kind = ConnectionType::Websocket;
    let mut opened = edge.handle.open(TUNNEL, &head).await.unwrap();
    let (response, mut body) = opened.response.recv().await.unwrap();
    assert_eq!(response.status, StatusCode::SWITCHING_PROTOCOLS);
    for message in ["one", "two", "three"] {
        write(&mut opened.send, Bytes::from(message)).await.unwrap();
        let mut chunks = VecDeque::new();
        assert!(poll_fn(|cx| body.poll_chunks(cx, &mut chunks)).await.unwrap());
        assert_eq!(chunks.iter().flatten().copied().collect::<Vec<u8>>(), message.as_bytes());
    }
}

#[tokio::test]
async fn an_origin_that_is_down_is_told_in_words() {
    let (_identity, edge, _connector) = pair(1).await;
    for (path, text) in [("fail", "origin is down"), ("drop", "request was dropped")] {
        let opened = edge.handle.open(TUNNEL, &request(path)).await.unwrap();
        assert_eq!(opened.response.recv().await.unwrap_err(), ResponseError::Origin(text.into()));
    }
}

#[tokio::test]
async fn a_truncated_origin_body_is_a_reset_not_an_end() {
    let (_identity, edge, _connector) = pair(1).await;
    let opened = edge.handle.open(TUNNEL, &request("truncate")).await.unwrap();
    let (_, mut body) = opened.response.recv().await.unwrap();
    assert_eq!(read_all(&mut body).await, Err(StreamError::Reset));
}

#[tokio::test]
async fn slow_visitors_who_do_not_read_do_not_freeze_the_others_of_their_connection() {
    let (_identity, edge, _connector) = pair(1).await;
    let mut unread = Vec::new();
    for _ in 0..10 {
        let mut opened = edge.handle.open(TUNNEL, &request("flood")).await.unwrap();
        opened.send.finish();
        unread.push(opened.response.recv().await.unwrap());
    }
    // More than the connection's window for all, so it can only come through what is lent.
    let opened = edge.handle.open(TUNNEL, &request("flood")).await.unwrap();
    let (_, mut body) = timeout(PATIENCE, opened.response.recv()).await.unwrap().unwrap();
    let (mut read, mut chunks) = (0, VecDeque::new());
    while read < 64 << 20 {
        let more = timeout(PATIENCE, poll_fn(|cx| body.poll_chunks(cx, &mut chunks))).await;
        assert!(more.unwrap().unwrap());
        read += chunks.drain(..).map(|chunk| chunk.len()).sum::<usize>();
    }
    assert_eq!(fetch(&edge.handle, "").await.0.status, StatusCode::OK);
    assert_eq!(counter(&edge.registry, "adit_edge_slow_reader_streams_stopped_total"), 0.0);
}

#[tokio::test]
async fn slow_uploads_that_an_origin_does_not_read_do_not_freeze_the_others_of_their_connection() {
    let (_identity, edge, connector) = pair(1).await;
    let mut unread = Vec::new();
    for _ in 0..10 {
        let opened = edge.handle.open(TUNNEL, &request("hang")).await.unwrap();
        let mut send = opened.send;
        let chunk = Bytes::from(vec![0; 1 << 16]);
        tokio::spawn(async move { while write(&mut send, chunk.clone()).await.is_ok() {} });
        unread.push(opened.response.recv().await.unwrap());
    }
    let opened = edge.handle.open(TUNNEL, &request("echo")).await.unwrap();
    let mut send = opened.send;
    let sender = tokio::spawn(async move {
        for _ in 0..64 {
            write(&mut send, Bytes::from(vec![0; 1 << 20])).await.unwrap();
        }
        send.finish();
    });
    let (_, mut body) = timeout(PATIENCE, opened.response.recv()).await.unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, read_all(&mut body)).await.unwrap().unwrap().len(), 64 << 20);
    sender.await.unwrap();
    assert_eq!(fetch(&edge.handle, "").await.0.status, StatusCode::OK);
    assert_eq!(connector.counter("adit_connector_slow_reader_streams_stopped_total"), 0.0);
}

#[tokio::test]
async fn a_visitor_who_leaves_is_noticed_at_the_origin() {
    let (_identity, edge, connector) = pair(1).await;
    let opened = edge.handle.open(TUNNEL, &request("hang")).await.unwrap();
    let (_, body) = opened.response.recv().await.unwrap();
    drop(body);
    eventually("abort at the origin", || connector.handler.aborted.load(Ordering::SeqCst) == 1).await;
    eventually("nothing in flight", || edge.handle.tunnels()[0].connections[0].in_flight == 0).await;
}

#[tokio::test]
async fn slow_requests_spread_over_the_connections_by_load() {
    let (_identity, edge, _connector) = pair(3).await;
    let mut open = Vec::new();
    let mut indexes = Vec::new();
    for _ in 0..9 {
        let opened = edge.handle.open(TUNNEL, &request("hang")).await.unwrap();
        indexes.push(opened.connection.index);
        open.push(opened);
    }
    for index in 0..3 {
        assert_eq!(indexes.iter().filter(|other| **other == index).count(), 3, "{indexes:?}");
    }
}

#[tokio::test]
async fn a_wrong_secret_ends_the_connector_with_the_edges_words() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let mut wrong = options(&identity, edge.address, 1);
    wrong.credentials.secret = Secret::new(vec![8; 32]);
    let ended = RunningConnector::start(wrong).ended().await;
    assert!(matches!(ended, Err(ConnectorError::Refused { cause }) if cause.contains("credentials")));
    assert_eq!(edge.connections(), 0);
}

#[tokio::test]
async fn an_unknown_tunnel_is_refused_and_opening_it_is_an_error() {
    let (_identity, edge, _connector) = pair(1).await;
    let other = adit_config::TunnelId(uuid::Uuid::from_u128(9));
    assert_eq!(edge.handle.open(other, &request("")).await.unwrap_err(), OpenError::UnknownTunnel);
    let mut head = request("");
    head.host = "Management.ArgoTunnel.com:443".into();
    assert_eq!(edge.handle.open(TUNNEL, &head).await.unwrap_err(), OpenError::ManagementHost);
}

#[tokio::test]
async fn a_ca_text_with_a_broken_entry_is_an_error_not_one_root_less() {
    let identity = Identity::new();
    let good = std::fs::read_to_string(&identity.ca).unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for text in [format!("{good}{broken}"), broken.to_owned(), String::new()] {
        let mut chosen = options(&identity, "127.0.0.1:1".parse().unwrap(), 1);
        chosen.ca_pem = Some(text);
        let made = Connector::new(chosen, Arc::default(), &prometheus::Registry::new());
        let refused: Result<Connector<Origin>, _> = made;
        assert!(matches!(refused.err(), Some(ConnectorError::Tls(TlsError::CaPem(_)))));
    }
}

#[tokio::test]
async fn a_tunnel_without_a_connector_says_so() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    assert_eq!(edge.handle.open(TUNNEL, &request("")).await.unwrap_err(), OpenError::NoConnection);
}

#[tokio::test]
async fn shutdown_serves_what_is_in_flight_and_ends_when_it_is_done() {
    let (_identity, edge, connector) = pair(2).await;
    let mut opened = edge.handle.open(TUNNEL, &request("echo")).await.unwrap();
    let (_, mut body) = opened.response.recv().await.unwrap();
    connector.stop.send_replace(true);
    connector.wait_ready(0).await;
    eventually("draining at the edge", || {
        edge.handle.tunnels()[0].connections.iter().all(|connection| connection.draining)
    })
    .await;
    let refused = edge.handle.open(TUNNEL, &request("")).await.unwrap_err();
    assert!(matches!(refused, OpenError::Draining | OpenError::NoConnection), "{refused:?}");
    write(&mut opened.send, Bytes::from_static(b"still here")).await.unwrap();
    opened.send.finish();
    assert_eq!(read_all(&mut body).await.unwrap(), b"still here");
    drop(body);
    connector.ended().await.unwrap();
    edge.wait_connections(0).await;
}

#[tokio::test]
async fn slow_everything_is_back_soon_after_the_edge_restarts() {
    let (identity, edge, connector) = pair(4).await;
    let address = edge.address;
    edge.stop().await;
    connector.wait_ready(0).await;
    let edge = RunningEdge::restart(&identity, address).await;
    connector.wait_ready(4).await;
    assert_eq!(fetch(&edge.handle, "").await.0.status, StatusCode::OK);
    assert!(connector.handle.connections().iter().all(|one| one.phase == ConnectionPhase::Registered));
}

#[tokio::test]
async fn an_edge_that_is_dropped_closes_and_requests_in_flight_fail_cleanly() {
    let (_identity, edge, connector) = pair(1).await;
    let opened = edge.handle.open(TUNNEL, &request("hang")).await.unwrap();
    let (_, mut body) = opened.response.recv().await.unwrap();
    edge.kill().await;
    assert_eq!(read_all(&mut body).await, Err(StreamError::ConnectionLost(Loss::ClosedByUs)));
    connector.wait_ready(0).await;
}

#[tokio::test]
async fn a_connector_that_is_dropped_is_gone_at_once() {
    let (_identity, edge, connector) = pair(1).await;
    let opened = edge.handle.open(TUNNEL, &request("hang")).await.unwrap();
    let (_, mut body) = opened.response.recv().await.unwrap();
    connector.task.abort();
    // The origin's task ends too, so what is seen is either its reset or the connection's end.
    let error = read_all(&mut body).await.unwrap_err();
    assert!(matches!(error, StreamError::Reset | StreamError::ConnectionLost(_)), "{error:?}");
    edge.wait_connections(0).await;
    assert_eq!(edge.handle.open(TUNNEL, &request("")).await.unwrap_err(), OpenError::NoConnection);
}

#[tokio::test]
async fn slow_a_reload_closes_a_removed_tunnel_and_refuses_its_old_secret() {
    let (_identity, edge, connector) = pair(1).await;
    let opened = edge.handle.open(TUNNEL, &request("hang")).await.unwrap();
    let (_, mut body) = opened.response.recv().await.unwrap();
    edge.handle.set_grants(vec![grant(9)]);
    assert_eq!(read_all(&mut body).await, Err(StreamError::ConnectionLost(Loss::ClosedByUs)));
    let ended = connector.ended().await;
    assert!(matches!(ended, Err(ConnectorError::Refused { .. })), "{ended:?}");
}

#[tokio::test]
async fn many_requests_at_once_all_come_back() {
    let (_identity, edge, _connector) = pair(2).await;
    let edge = Arc::new(edge);
    let tasks: Vec<_> = (0..200)
        .map(|index| {
            let edge = Arc::clone(&edge);
            tokio::spawn(async move { fetch(&edge.handle, &format!("{index}")).await })
        })
        .collect();
    for (index, task) in tasks.into_iter().enumerate() {
        let (_, body) = task.await.unwrap();
        assert!(body.ends_with(format!("/{index}").as_bytes()));
    }
    eventually("nothing in flight", || {
        edge.handle.tunnels()[0].connections.iter().all(|connection| connection.in_flight == 0)
    })
    .await;
}

#[tokio::test]
async fn a_pushed_configuration_is_applied_once_and_a_bad_one_keeps_the_old() {
    let (_identity, edge, connector) = pair(1).await;
    let cases = [
        (3, &b"{}"[..], (3, None)),
        (3, b"{}", (3, None)),
        (2, b"{}", (3, None)),
        (4, b"bad", (3, Some("bad rules".to_owned()))),
    ];
    for (version, json, expected) in cases {
        let answers = edge.handle.push_configuration(TUNNEL, version, json).await.unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].outcome, Ok(expected));
    }
    assert_eq!(*connector.handler.configurations.lock().unwrap(), [(3, b"{}".to_vec())]);
}
