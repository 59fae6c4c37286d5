use proptest::prelude::*;

use super::*;
use crate::registration::Client;

fn grant(tunnel: u128, secret: u8) -> Grant {
    Grant {
        id: TunnelId(Uuid::from_u128(tunnel)),
        name: format!("t{tunnel}"),
        secret: Secret::new(vec![secret; 32]),
        account_tag: None,
        hostnames: vec!["*.home.example".parse().unwrap(), "a.example".parse().unwrap()],
        connections_max: 3,
    }
}

fn registration(tunnel: u128, secret: u8, client: u128, index: u8) -> Registration {
    Registration {
        account_tag: "account".into(),
        secret: Secret::new(vec![secret; 32]),
        tunnel: TunnelId(Uuid::from_u128(tunnel)),
        index,
        client: Client {
            id: Uuid::from_u128(client),
            features: vec![],
            version: "1".into(),
            arch: "x".into(),
        },
        origin_local_ip: None,
        replace_existing: false,
        previous_attempts: 0,
    }
}

fn admit(registry: &mut Registry, key: u64, registration: &Registration) -> Result<Admission, Refusal> {
    registry.register(ConnectionKey(key), registration, |a, b| a == b, |_| false)
}

const FRESH: Result<Admission, Refusal> = Ok(Admission { superseded: None });

#[test]
fn wrong_credentials_are_refused_by_name_but_look_alike() {
    let mut wants_tag = grant(2, 7);
    wants_tag.account_tag = Some("other".into());
    let mut registry = Registry::new(vec![grant(1, 7), wants_tag], 10);
    let cases = [
        (registration(9, 7, 1, 0), Refusal::UnknownTunnel),
        (registration(1, 8, 1, 0), Refusal::WrongSecret),
        (registration(2, 7, 1, 0), Refusal::WrongAccount),
    ];
    for (registration, refusal) in cases {
        assert_eq!(admit(&mut registry, 1, &registration), Err(refusal));
        assert_eq!(refusal.rejection(), Refusal::UnknownTunnel.rejection());
        assert!(!refusal.rejection().should_retry);
    }
}

#[test]
fn one_connector_may_have_several_connections_but_each_index_once() {
    let mut registry = Registry::new(vec![grant(1, 7)], 10);
    assert_eq!(admit(&mut registry, 1, &registration(1, 7, 5, 0)), FRESH);
    assert_eq!(admit(&mut registry, 2, &registration(1, 7, 5, 1)), FRESH);
    assert_eq!(admit(&mut registry, 3, &registration(1, 7, 5, 0)), Err(Refusal::Duplicate));
    assert!(Refusal::Duplicate.rejection().is_duplicate());
    assert_eq!(admit(&mut registry, 3, &registration(1, 7, 6, 0)), FRESH);
    assert_eq!(admit(&mut registry, 4, &registration(1, 7, 7, 0)), Err(Refusal::TooManyConnections));
    registry.disconnect(ConnectionKey(1));
    assert_eq!(admit(&mut registry, 4, &registration(1, 7, 5, 0)), FRESH);
    assert_eq!(admit(&mut registry, 4, &registration(1, 7, 5, 0)), Err(Refusal::Twice));
}

#[test]
fn a_silent_duplicate_is_superseded() {
    let mut registry = Registry::new(vec![grant(1, 7)], 10);
    admit(&mut registry, 1, &registration(1, 7, 5, 0)).unwrap();
    let admission =
        registry.register(ConnectionKey(2), &registration(1, 7, 5, 0), |a, b| a == b, |key| key.0 == 1);
    assert_eq!(admission, Ok(Admission { superseded: Some(ConnectionKey(1)) }));
    // The late end of the old one does not touch the new one.
    registry.disconnect(ConnectionKey(1));
    assert_eq!(admit(&mut registry, 3, &registration(1, 7, 5, 0)), Err(Refusal::Duplicate));
}

#[test]
fn hosts_are_learnt_within_what_the_tunnel_may_serve() {
    let mut registry = Registry::new(vec![grant(1, 7)], 10);
    admit(&mut registry, 1, &registration(1, 7, 5, 0)).unwrap();
    let json = br#"{"ingress":[{"hostname":"x.home.example"},{"hostname":"evil.example"},{"hostname":"*.home.example"},{"service":"http_status:404"}]}"#;
    assert_eq!(registry.learn(ConnectionKey(1), json), Ok(Learnt { taken: 2, not_allowed: 1 }));
    let learnt = registry.learnt();
    assert_eq!(learnt[0].1.len(), 2);
    assert_eq!(registry.learn(ConnectionKey(2), json), Err(LearnError::NotRegistered));
    assert!(matches!(registry.learn(ConnectionKey(1), b"{"), Err(LearnError::Push(_))));
    assert_eq!(registry.learnt(), learnt);
}

#[test]
fn hosts_outlive_the_last_connection_but_not_a_connector_among_others() {
    let mut registry = Registry::new(vec![grant(1, 7)], 10);
    admit(&mut registry, 1, &registration(1, 7, 5, 0)).unwrap();
    admit(&mut registry, 2, &registration(1, 7, 6, 0)).unwrap();
    registry.learn(ConnectionKey(1), br#"{"ingress":[{"hostname":"x.home.example"}]}"#).unwrap();
    registry.learn(ConnectionKey(2), br#"{"ingress":[{"hostname":"y.home.example"}]}"#).unwrap();
    assert_eq!(registry.learnt()[0].1.len(), 2);
    registry.disconnect(ConnectionKey(1));
    assert_eq!(registry.learnt()[0].1, ["y.home.example".parse().unwrap()]);
    registry.disconnect(ConnectionKey(2));
    assert_eq!(registry.learnt()[0].1, ["y.home.example".parse().unwrap()]);
    admit(&mut registry, 3, &registration(1, 7, 8, 0)).unwrap();
    registry.learn(ConnectionKey(3), br#"{"ingress":[{"hostname":"z.home.example"}]}"#).unwrap();
    assert_eq!(registry.learnt()[0].1, ["z.home.example".parse().unwrap()]);
}

#[test]
fn reload_closes_what_is_gone_or_has_a_new_secret_and_nothing_else() {
    let mut registry = Registry::new(vec![grant(1, 7), grant(2, 7), grant(3, 7)], 10);
    for tunnel in 1..=3u64 {
        admit(&mut registry, tunnel, &registration(tunnel.into(), 7, 5, 0)).unwrap();
    }
    let gone = registry.replace_grants(vec![grant(1, 7), grant(2, 8)]);
    assert_eq!(gone, [ConnectionKey(2), ConnectionKey(3)]);
    assert!(!registry.is_registered(ConnectionKey(2)), "revoked at once, not when it is closed");
    assert!(registry.is_registered(ConnectionKey(1)));
}

#[test]
fn reload_forgets_learnt_hosts_that_are_no_longer_allowed() {
    let mut registry = Registry::new(vec![grant(1, 7)], 10);
    admit(&mut registry, 1, &registration(1, 7, 5, 0)).unwrap();
    registry
        .learn(ConnectionKey(1), br#"{"ingress":[{"hostname":"a.example"},{"hostname":"x.home.example"}]}"#)
        .unwrap();
    let mut narrower = grant(1, 7);
    narrower.hostnames.truncate(1);
    assert!(registry.replace_grants(vec![narrower]).is_empty());
    assert_eq!(registry.learnt()[0].1, ["x.home.example".parse().unwrap()]);
}

fn pick_of(all: &[Candidate], start: usize, max: usize) -> Result<usize, PickError> {
    pick(all.len(), start, max, |at| all[at])
}

fn candidate(in_flight: usize, draining: bool, silent: bool) -> Candidate {
    Candidate { in_flight, draining, silent }
}

#[test]
fn picking_names_why_nothing_can_be_picked() {
    assert_eq!(pick_of(&[], 0, 9), Err(PickError::NoConnection));
    assert_eq!(pick_of(&[candidate(0, true, false)], 0, 9), Err(PickError::Draining));
    assert_eq!(pick_of(&[candidate(9, false, false), candidate(0, true, false)], 0, 9), Err(PickError::Full));
}

#[test]
fn equal_loads_take_turns() {
    let all = [candidate(1, false, false); 4];
    let picked: Vec<_> = (0..4).map(|start| pick_of(&all, start, 9).unwrap()).collect();
    assert_eq!(picked, [0, 1, 2, 3]);
}

proptest! {
    #[test]
    fn the_pick_is_the_least_loaded_of_those_that_may(
        all in proptest::collection::vec((0usize..6, any::<bool>(), any::<bool>()), 1..8),
        start in any::<usize>(),
    ) {
        let all: Vec<_> = all.into_iter().map(|(load, draining, silent)| candidate(load, draining, silent)).collect();
        let usable = |candidate: &&Candidate| !candidate.draining && candidate.in_flight < 5;
        let best = all.iter().filter(usable).map(|candidate| (candidate.silent, candidate.in_flight)).min();
        match pick_of(&all, start, 5) {
            Ok(at) => prop_assert_eq!(Some((all[at].silent, all[at].in_flight)), best),
            Err(_) => prop_assert_eq!(best, None),
        }
    }
}
