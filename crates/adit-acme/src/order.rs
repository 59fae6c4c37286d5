//! One order, from the wish to the certificate (RFC 8555 §7.4).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_config::{AcmeChallenge, CertificateResolver};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeHandle, ChallengeType, Error, Identifier,
    NewOrder, OrderStatus, RetryPolicy,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::challenges::{Challenges, Presented};
use crate::client::Seen;
use crate::dns::{Dns, TxtRecord};
use crate::error::AcmeError;
use crate::store::Issued;
use crate::{key, wanted};

/// What an order is made of.
pub(crate) struct Order<'a> {
    pub(crate) resolver: &'a CertificateResolver,
    pub(crate) names: &'a [String],
    /// The certificate that this one takes the place of, if the CA wants to know.
    pub(crate) replaces: Option<CertificateIdentifier<'static>>,
    pub(crate) challenges: &'a Arc<Challenges>,
    pub(crate) seen: &'a Seen,
    /// Records that were set in DNS: whoever ends or drops the order removes them.
    pub(crate) records: &'a Mutex<Vec<TxtRecord>>,
}

impl Order<'_> {
    /// Orders, shows that the names are ours, and returns the certificate.
    pub(crate) async fn obtain(&self, account: &Account) -> Result<Issued, AcmeError> {
        let identifiers: Vec<Identifier> = self.names.iter().map(|name| identifier(name)).collect();
        let mut order = self.place(account, &identifiers).await?;
        let validated = self.validate(&mut order).await;
        if let Err(error) = validated {
            // Pending authorizations count against the account; the CA forgets them only after days.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, abandon(&mut order)).await;
            return Err(error);
        }
        let request = key::request(self.names, self.resolver.key_type).await?;
        order.finalize_csr(&request.csr).await?;
        let patience = policy(self.resolver.certificate_timeout);
        let chain = match order.poll_certificate(&patience).await {
            Err(Error::Timeout(_)) => return Err(AcmeError::Timeout("issued")),
            chain => chain?,
        };
        let chain = self.preferred(account, chain).await;
        self.check(chain, request.key_pem)
    }

    /// Says what it replaces if that is known; a CA that does not like that gets the same wish without.
    async fn place(
        &self,
        account: &Account,
        identifiers: &[Identifier],
    ) -> Result<instant_acme::Order, AcmeError> {
        let wish = || match &self.resolver.profile {
            Some(profile) => NewOrder::new(identifiers).profile(profile),
            None => NewOrder::new(identifiers),
        };
        if let Some(replaces) = &self.replaces {
            match account.new_order(&wish().replaces(replaces.clone())).await.map_err(AcmeError::from) {
                Err(AcmeError::Refused(why)) => {
                    tracing::debug!(%why, "ordering without naming the certificate replaced");
                }
                order => return order,
            }
        }
        Ok(account.new_order(&wish()).await?)
    }

    async fn validate(&self, order: &mut instant_acme::Order) -> Result<(), AcmeError> {
        // RFC 8555 §7.1.3: one a name, and each costs requests.
        if order.state().authorizations.len() > self.names.len() {
            return Err(AcmeError::Answer("more authorizations than names".to_owned()));
        }
        if order.state().status == OrderStatus::Ready {
            return Ok(());
        }
        let presented = self.present(order).await?;
        let _written = self.challenges.write(&presented, &self.resolver.storage);
        if let AcmeChallenge::Dns(settings) = &self.resolver.challenge {
            let records = self.records.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Dns::new(settings).wait_visible(&records).await?;
        } else if let AcmeChallenge::Http { delay, .. } | AcmeChallenge::Tls { delay } =
            &self.resolver.challenge
        {
            tokio::time::sleep(*delay).await;
        }
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(self.kind().1)
            {
                challenge.set_ready().await?;
            }
        }
        match order.poll_ready(&policy(VALIDATION_TIMEOUT)).await {
            Ok(OrderStatus::Ready) => Ok(()),
            Ok(_) => Err(failure(order, None).await),
            Err(Error::Api(problem)) => Err(failure(order, Some(AcmeError::of_problem(&problem))).await),
            Err(Error::Timeout(_)) => Err(AcmeError::Timeout("validated")),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts up the answers of all challenges; they stand as long as the result is held.
    async fn present(&self, order: &mut instant_acme::Order) -> Result<Vec<Presented>, AcmeError> {
        let mut presented = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let name = authorization.identifier().to_string();
            let (challenge, kind) = self.kind();
            let Some(handle) = authorization.challenge(kind) else {
                return Err(AcmeError::NotOffered { name, challenge });
            };
            presented.extend(self.present_one(&name, &handle).await?);
        }
        Ok(presented)
    }

    async fn present_one(
        &self,
        name: &str,
        handle: &ChallengeHandle<'_>,
    ) -> Result<Option<Presented>, AcmeError> {
        let authorization = handle.key_authorization();
        match &self.resolver.challenge {
            AcmeChallenge::Http { .. } => {
                self.challenges.present_http(&handle.token, authorization.as_str()).map(Some)
            }
            AcmeChallenge::Tls { .. } => {
                self.challenges.present_tls(name, authorization.digest().as_ref()).map(Some)
            }
            AcmeChallenge::Dns(settings) => {
                let dns = Dns::new(settings);
                let record = dns.place(name, &authorization.dns_value()).await?;
                // Noted first: where the answer gets lost, the record may be there all the same.
                self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record.clone());
                dns.add(&record).await?;
                Ok(None)
            }
        }
    }

    fn kind(&self) -> (&'static str, ChallengeType) {
        match self.resolver.challenge {
            AcmeChallenge::Http { .. } => ("http-01", ChallengeType::Http01),
            AcmeChallenge::Tls { .. } => ("tls-alpn-01", ChallengeType::TlsAlpn01),
            AcmeChallenge::Dns(_) => ("dns-01", ChallengeType::Dns01),
        }
    }

    /// The chain whose topmost certificate is issued by whom the operator prefers, or the CA's first.
    ///
    /// instant-acme has no call for alternative chains. Asking for one as if it were an order sends the right request; what
    /// comes is no order, and [`Seen`] has kept it.
    async fn preferred(&self, account: &Account, first: String) -> String {
        let Some(wanted) = &self.resolver.preferred_chain else { return first };
        let alternates = self.seen.take_alternates();
        if topmost_issuer(&first).as_deref() == Some(wanted) {
            return first;
        }
        for url in alternates {
            self.seen.take_chain();
            let _ = account.order(url).await;
            let chain = self.seen.take_chain().and_then(|chain| String::from_utf8(chain.to_vec()).ok());
            if let Some(chain) = chain.filter(|chain| topmost_issuer(chain).as_deref() == Some(wanted)) {
                return chain;
            }
        }
        tracing::warn!(preferred = %wanted, "the CA offers no such chain: its first is used");
        first
    }

    fn check(&self, chain: String, key_pem: Zeroizing<String>) -> Result<Issued, AcmeError> {
        let mut issued = Issued::from_pem(chain, key_pem).map_err(AcmeError::Certificate)?;
        if let Some(missing) = self.names.iter().find(|name| !wanted::covers(&issued.names, name)) {
            return Err(AcmeError::Certificate(format!("it lacks {missing}")));
        }
        let key = issued.key().ok_or_else(|| AcmeError::Certificate("its key is lost".to_owned()))?;
        CertifiedKey::from_der(issued.chain.clone(), key, &aws_lc_rs::default_provider())
            .map_err(|error| AcmeError::Certificate(error.to_string()))?;
        issued.directory = Some(self.resolver.directory.clone());
        Ok(issued)
    }
}

/// Which challenge failed and what the CA saw; `otherwise` if no challenge tells.
async fn failure(order: &mut instant_acme::Order, otherwise: Option<AcmeError>) -> AcmeError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return AcmeError::Validation { name, why: AcmeError::of_problem(problem).to_string() };
        }
    }
    otherwise.unwrap_or_else(|| AcmeError::Refused("the order has become invalid".to_owned()))
}

/// Tells the CA that what is still pending will not be asked for.
async fn abandon(order: &mut instant_acme::Order) {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.status == AuthorizationStatus::Pending {
            // Only saves the CA some memory: it forgets by itself.
            let _ = authorization.deactivate().await;
        }
    }
}

fn identifier(name: &str) -> Identifier {
    match name.parse() {
        Ok(address) => Identifier::Ip(address),
        Err(_) => Identifier::Dns(name.to_owned()),
    }
}

fn policy(timeout: Duration) -> RetryPolicy {
    RetryPolicy::new().initial_delay(POLL_FIRST).backoff(POLL_GROWTH).timeout(timeout)
}

/// Common name of who issued the last certificate of a chain.
fn topmost_issuer(chain_pem: &str) -> Option<String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let last = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).last()?.ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&last).ok()?;
    let name = parsed.issuer().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

/// The CA looks several times, from several places.
const VALIDATION_TIMEOUT: Duration = Duration::from_secs(120);
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_FIRST: Duration = Duration::from_millis(250);
/// A CA's own `Retry-After` goes before.
const POLL_GROWTH: f32 = 1.5;
