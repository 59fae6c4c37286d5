//! dns-01: TXT records set by dynamic update (RFC 2136) signed with TSIG (RFC 8945).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_config::{DnsChallenge, TsigKey};
use hickory_proto::op::{Message, MessageType, Query, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{Name, RData, Record, RecordSet, RecordType, TSigner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::error::AcmeError;

/// A record that was set, to be taken away again.
#[derive(Clone, Debug)]
pub(crate) struct TxtRecord {
    zone: Name,
    name: Name,
    value: String,
}

/// Sets, watches and removes the records of one resolver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dns<'a> {
    settings: &'a DnsChallenge,
}

impl<'a> Dns<'a> {
    pub(crate) fn new(settings: &'a DnsChallenge) -> Self {
        Self { settings }
    }

    /// Where the record of `domain` belongs: aliases are followed, so that the zone that takes updates may be another one.
    pub(crate) async fn place(&self, domain: &str, value: &str) -> Result<TxtRecord, AcmeError> {
        let wanted = format!("_acme-challenge.{}.", domain.trim_start_matches("*."));
        let fail = |why: String| AcmeError::DnsUpdate { name: wanted.clone(), why };
        let mut name = Name::from_ascii(&wanted).map_err(|error| fail(error.to_string()))?;
        let server = self.settings.resolvers.first().unwrap_or(&self.settings.nameserver);
        for hop in 0.. {
            if hop == ALIASES_MAX {
                return Err(fail(format!("more than {ALIASES_MAX} aliases in a row")));
            }
            match self.alias(server, &name).await {
                Ok(Some(target)) => name = target,
                // A server that does not answer for this name knows no alias; the update will tell.
                Ok(None) | Err(_) => break,
            }
        }
        let zone = match &self.settings.zone {
            Some(zone) => Name::from_ascii(zone).map_err(|error| fail(error.to_string()))?,
            None => self.find_zone(&name).await.map_err(fail)?,
        };
        let mut zone = zone;
        zone.set_fqdn(true);
        if !zone.zone_of(&name) {
            return Err(fail(format!("it is not in the zone {zone}")));
        }
        Ok(TxtRecord { zone, name, value: value.to_owned() })
    }

    /// Adds a record beside others of its name: a wildcard and its parent are validated at once.
    pub(crate) async fn add(&self, record: &TxtRecord) -> Result<(), AcmeError> {
        let message = update_message::append(record.set(), record.zone.clone(), false, false);
        self.update(record, message).await
    }

    /// Takes exactly that record away.
    pub(crate) async fn remove(&self, record: &TxtRecord) -> Result<(), AcmeError> {
        let message = update_message::delete_by_rdata(record.set(), record.zone.clone(), false);
        self.update(record, message).await
    }

    /// Waits until every server that matters shows the records.
    pub(crate) async fn wait_visible(&self, records: &[TxtRecord]) -> Result<(), AcmeError> {
        tokio::time::sleep(self.settings.delay_before_checks).await;
        if self.settings.disable_checks {
            return Ok(());
        }
        let alone = std::slice::from_ref(&self.settings.nameserver);
        let servers = if self.settings.resolvers.is_empty() { alone } else { &self.settings.resolvers };
        let deadline = Instant::now() + PROPAGATION_TIMEOUT;
        for server in servers {
            for record in records {
                while let Err(why) = self.sees(server, record).await {
                    if Instant::now() >= deadline {
                        let (name, server) = (record.name.to_ascii(), server.clone());
                        return Err(AcmeError::DnsPropagation { name, server, why });
                    }
                    tokio::time::sleep(PROPAGATION_INTERVAL).await;
                }
            }
        }
        Ok(())
    }

    async fn update(&self, record: &TxtRecord, mut message: Message) -> Result<(), AcmeError> {
        let fail = |why: String| AcmeError::DnsUpdate { name: record.name.to_ascii(), why };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let mut verifier = None;
        if let Some(key) = &self.settings.key {
            verifier = message
                .finalize(&signer(key).map_err(fail)?, now)
                .map_err(|error| fail(error.to_string()))?;
        }
        let answer = exchange(&self.settings.nameserver, &message).await.map_err(fail)?;
        let code =
            Message::from_vec(&answer).map_err(|error| fail(error.to_string()))?.metadata.response_code;
        if code != ResponseCode::NoError {
            return Err(fail(format!("{} answers {code}", self.settings.nameserver)));
        }
        if let Some(mut verifier) = verifier {
            // An unsigned "yes" may be anybody's.
            verifier.verify(&answer).map_err(|error| fail(format!("the answer's signature: {error}")))?;
        }
        tracing::debug!(name = %record.name, zone = %record.zone, "DNS record changed");
        Ok(())
    }

    async fn alias(&self, server: &str, name: &Name) -> Result<Option<Name>, String> {
        let answer = ask(server, name, RecordType::CNAME).await?;
        Ok(answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *name => Some(target.0.clone()),
            _ => None,
        }))
    }

    /// The zone with this name: the server names it beside its answer, whether or not the name exists (RFC 2308 §3).
    async fn find_zone(&self, name: &Name) -> Result<Name, String> {
        let server = &self.settings.nameserver;
        let answer = ask(server, name, RecordType::SOA).await?;
        let records = answer.answers.iter().chain(&answer.authorities);
        let mut zones = records.filter(|record| record.record_type() == RecordType::SOA).map(|r| &r.name);
        zones.find(|zone| zone.zone_of(name)).cloned().ok_or_else(|| {
            format!("{server} names no zone for it ({}): set `zone`", answer.metadata.response_code)
        })
    }

    async fn sees(&self, server: &str, record: &TxtRecord) -> Result<(), String> {
        let answer = ask(server, &record.name, RecordType::TXT).await?;
        let has = answer.answers.iter().any(|found| match &found.data {
            RData::TXT(text) => text.txt_data.concat() == record.value.as_bytes(),
            _ => false,
        });
        if has { Ok(()) } else { Err(format!("answer {} without the record", answer.metadata.response_code)) }
    }
}

impl TxtRecord {
    fn set(&self) -> RecordSet {
        RecordSet::from(Record::from_rdata(
            self.name.clone(),
            TTL_SECONDS,
            RData::TXT(TXT::new(vec![self.value.clone()])),
        ))
    }
}

fn signer(key: &TsigKey) -> Result<TSigner, String> {
    let algorithm = match key.algorithm.as_str() {
        "hmac-sha384" => TsigAlgorithm::HmacSha384,
        "hmac-sha512" => TsigAlgorithm::HmacSha512,
        _ => TsigAlgorithm::HmacSha256,
    };
    let name = Name::from_ascii(&key.name).map_err(|error| error.to_string())?;
    TSigner::new(key.secret.expose().to_vec(), algorithm, name, TSIG_FUDGE_SECONDS)
        .map_err(|error| error.to_string())
}

async fn ask(server: &str, name: &Name, kind: RecordType) -> Result<Message, String> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let answer = Message::from_vec(&exchange(server, &message).await?).map_err(|error| error.to_string())?;
    match answer.queries == message.queries {
        true => Ok(answer),
        false => Err(format!("{server} answers another question")),
    }
}

/// One question, one answer: over UDP, and over TCP where that brings nothing or not all.
async fn exchange(server: &str, message: &Message) -> Result<Vec<u8>, String> {
    let bytes = message.to_vec().map_err(|error| error.to_string())?;
    let id = message.metadata.id;
    if bytes.len() <= UDP_BYTES_MAX {
        for _ in 0..UDP_TRIES {
            match timeout(UDP_TIMEOUT, over_udp(server, &bytes, id)).await {
                Ok(Ok(answer)) if is_whole(&answer) => return Ok(answer),
                Ok(Ok(_)) => break,
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
    match timeout(TCP_TIMEOUT, over_tcp(server, &bytes)).await {
        Ok(Ok(answer)) if is_answer(&answer, id) => Ok(answer),
        Ok(Ok(_)) => Err(format!("{server} answers something else")),
        Ok(Err(error)) => Err(format!("{server}: {error}")),
        Err(_) => Err(format!("{server} does not answer")),
    }
}

async fn over_udp(server: &str, bytes: &[u8], id: u16) -> std::io::Result<Vec<u8>> {
    let address = tokio::net::lookup_host(server).await?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let any: std::net::IpAddr = match address.is_ipv4() {
        true => std::net::Ipv4Addr::UNSPECIFIED.into(),
        false => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Datagrams from elsewhere are the system's to drop.
    socket.connect(address).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(&buffer[..length], id) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: &str, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn is_answer(bytes: &[u8], id: u16) -> bool {
    Message::from_vec(bytes).is_ok_and(|message| {
        message.metadata.id == id && message.metadata.message_type == MessageType::Response
    })
}

fn is_whole(bytes: &[u8]) -> bool {
    Message::from_vec(bytes).is_ok_and(|message| !message.metadata.truncation)
}

/// How long others may remember the record; it is gone before.
const TTL_SECONDS: u32 = 120;
/// RFC 8945 §10: clocks may differ by so much.
const TSIG_FUDGE_SECONDS: u16 = 300;
/// As deep as resolvers go.
const ALIASES_MAX: usize = 8;
/// Secondaries have so long to take over the change.
const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(60);
const PROPAGATION_INTERVAL: Duration = Duration::from_secs(2);
/// RFC 1035 §4.2.1: what every path takes.
const UDP_BYTES_MAX: usize = 512;
const DATAGRAM_BYTES_MAX: usize = 4096;
const UDP_TRIES: usize = 2;
const UDP_TIMEOUT: Duration = Duration::from_secs(3);
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What a server says that has one TXT record, or only that the answer is too long for UDP.
    fn answer(question: &[u8], truncated: bool) -> Vec<u8> {
        let question = Message::from_vec(question).unwrap();
        let mut answer = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
        answer.metadata.truncation = truncated;
        answer.add_queries(question.queries.clone());
        if !truncated {
            let text = RData::TXT(TXT::new(vec!["value".to_owned()]));
            answer.add_answers([Record::from_rdata(question.queries[0].name().clone(), 1, text)]);
        }
        answer.to_vec().unwrap()
    }

    fn settings(nameserver: String) -> DnsChallenge {
        DnsChallenge {
            nameserver,
            zone: Some("a.test".to_owned()),
            key: None,
            resolvers: Vec::new(),
            disable_checks: false,
            delay_before_checks: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn an_answer_too_long_for_udp_comes_over_tcp() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(server).await.unwrap();
        let short = tokio::spawn(async move {
            let mut buffer = vec![0; 512];
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            // Another id first, as from somebody who guesses.
            let mut forged = answer(&buffer[..length], false);
            forged[0] ^= 1;
            udp.send_to(&forged, from).await.unwrap();
            udp.send_to(&answer(&buffer[..length], true), from).await.unwrap();
        });
        let long = tokio::spawn(async move {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await.unwrap();
            let answer = answer(&question, false);
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        });
        let settings = settings(server.to_string());
        let name = Name::from_ascii("_acme-challenge.a.test.").unwrap();
        let zone = Name::from_ascii("a.test.").unwrap();
        let record = TxtRecord { zone, name, value: "value".to_owned() };
        assert_eq!(Dns::new(&settings).sees(&settings.nameserver, &record).await, Ok(()));
        short.await.unwrap();
        long.await.unwrap();
    }

    #[tokio::test]
    async fn a_name_outside_the_zone_is_refused_before_anything_is_sent() {
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let settings = settings(closed.to_string());
        let error = Dns::new(&settings).place("a.example", "value").await.unwrap_err();
        assert!(error.reason() == "dns_update" && error.to_string().contains("not in the zone"), "{error}");
        let record = Dns::new(&settings).place("*.x.a.test", "value").await.unwrap();
        assert_eq!(record.name.to_ascii(), "_acme-challenge.x.a.test.");
        assert_eq!(Dns::new(&settings).add(&record).await.unwrap_err().reason(), "dns_update");
    }
}
