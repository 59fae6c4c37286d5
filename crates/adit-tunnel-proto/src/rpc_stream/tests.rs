use std::time::Duration;

use adit_config::{Secret, TunnelId};
use uuid::Uuid;

use super::*;
use crate::registration::Client;

fn registration() -> Registration {
    Registration {
        account_tag: "account".into(),
        secret: Secret::new(vec![7; 32]),
        tunnel: TunnelId(Uuid::from_u128(1)),
        index: 2,
        client: Client {
            id: Uuid::from_u128(2),
            features: vec!["a".into(), "b".into()],
            version: "2026.8.2".into(),
            arch: "linux_amd64".into(),
        },
        origin_local_ip: Some([127, 0, 0, 1].into()),
        replace_existing: false,
        previous_attempts: 3,
    }
}

fn exchange(client: &mut RpcClient, server: &mut RpcServer) {
    loop {
        let (to_server, to_client) = (client.poll_transmit(), server.poll_transmit());
        if to_server.is_none() && to_client.is_none() {
            return;
        }
        if let Some(bytes) = to_server {
            server.handle_chunk(bytes).unwrap();
        }
        if let Some(bytes) = to_client {
            client.handle_chunk(bytes).unwrap();
        }
    }
}

#[test]
fn a_registration_arrives_as_it_was_sent_and_its_answer_comes_back() {
    let (mut client, mut server) = (RpcClient::new(), RpcServer::new(Service::Registration));
    client.register(&registration()).unwrap();
    exchange(&mut client, &mut server);
    let Some(ServerEvent::Register { call, registration: arrived }) = server.poll_event() else { panic!() };
    assert_eq!(*arrived, registration());
    let registered =
        Registered { connection_id: Uuid::from_u128(9), location: "here".into(), remotely_managed: false };
    server.answer_registration(call, &Ok(registered.clone()));
    exchange(&mut client, &mut server);
    assert_eq!(client.poll_event(), Some(ClientEvent::Registered(registered)));
}

#[test]
fn a_rejection_keeps_its_cause_wait_and_finality() {
    for rejection in [
        Rejection::duplicate(),
        Rejection::permanent("Unauthorized: Invalid tunnel secret"),
        Rejection::temporary("busy", Duration::from_secs(7)),
    ] {
        let (mut client, mut server) = (RpcClient::new(), RpcServer::new(Service::Registration));
        client.register(&registration()).unwrap();
        exchange(&mut client, &mut server);
        let Some(ServerEvent::Register { call, .. }) = server.poll_event() else { panic!() };
        server.answer_registration(call, &Err(rejection.clone()));
        exchange(&mut client, &mut server);
        assert_eq!(client.poll_event(), Some(ClientEvent::Rejected(rejection)));
    }
}

#[test]
fn the_whole_life_of_a_control_channel_ends_normally() {
    let (mut client, mut server) = (RpcClient::new(), RpcServer::new(Service::Registration));
    client.update_local_configuration(b"{}").unwrap();
    exchange(&mut client, &mut server);
    let Some(ServerEvent::LocalConfiguration { call, json }) = server.poll_event() else { panic!() };
    assert_eq!(json, b"{}");
    server.acknowledge(call);
    exchange(&mut client, &mut server);
    assert_eq!(client.poll_event(), Some(ClientEvent::LocalConfigurationTaken));
    client.unregister().unwrap();
    exchange(&mut client, &mut server);
    let Some(ServerEvent::Unregister { call }) = server.poll_event() else { panic!() };
    server.acknowledge(call);
    exchange(&mut client, &mut server);
    assert_eq!(client.poll_event(), Some(ClientEvent::Unregistered));
    client.shutdown();
    exchange(&mut client, &mut server);
    assert_eq!(server.poll_event(), Some(ServerEvent::Ended { reason: crate::rpc::SHUTDOWN_REASON.into() }));
    assert_eq!(server.handle_end(), Ok(()));
}

#[test]
fn a_configuration_push_returns_version_and_error() {
    let (mut client, mut server) = (RpcClient::new(), RpcServer::new(Service::Connector));
    for error in [None, Some("bad rule")] {
        client.update_configuration(5, b"{}").unwrap();
        exchange(&mut client, &mut server);
        let Some(ServerEvent::Configuration { call, version: 5, .. }) = server.poll_event() else { panic!() };
        server.answer_configuration(call, 4, error);
        exchange(&mut client, &mut server);
        let error = error.map(str::to_owned);
        assert_eq!(client.poll_event(), Some(ClientEvent::ConfigurationAnswered { version: 4, error }));
    }
}

#[test]
fn a_method_of_another_service_is_refused_and_the_channel_lives() {
    let (mut client, mut server) = (RpcClient::new(), RpcServer::new(Service::Sessions));
    client.unregister().unwrap();
    exchange(&mut client, &mut server);
    assert_eq!(server.poll_event(), Some(ServerEvent::Refused { reason: "unknown_method" }));
    exchange(&mut client, &mut server);
    assert!(matches!(client.poll_event(), Some(ClientEvent::Failed { method: "unregister_connection", .. })));
}

#[test]
fn a_registration_with_a_short_id_is_refused_by_name() {
    let (mut client, mut server) = (Peer::new(), RpcServer::new(Service::Registration));
    client
        .call(REGISTER_CONNECTION, 0, |params| {
            params.init_as::<schema::register_connection_params::Builder<'_>>().set_tunnel_id(&[1, 2, 3]);
            Ok(())
        })
        .unwrap();
    while let Some(bytes) = client.poll_transmit() {
        server.handle_chunk(bytes).unwrap();
    }
    assert_eq!(server.poll_event(), Some(ServerEvent::Refused { reason: "malformed_parameters" }));
}

#[test]
fn secrets_are_not_printed() {
    let shown = format!("{:?}", registration().secret);
    assert!(shown.contains("***") && !shown.contains('7'), "{shown}");
}
