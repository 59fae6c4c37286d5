//! When the CA itself wants a certificate renewed (ACME renewal information, RFC 9773).

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use instant_acme::{Account, CertificateIdentifier, Error};

use crate::error::AcmeError;
use crate::store::Issued;

/// What the CA has said about each certificate.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    known: HashMap<String, Advice>,
    /// The CA has no such service: it is looked for again after this.
    without_until: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug)]
struct Advice {
    renew_at: Option<SystemTime>,
    ask_again: SystemTime,
}

impl Renewals {
    /// When the CA wants this one renewed, if it has said so.
    pub(crate) fn renew_at(&self, issued: &Issued) -> Option<SystemTime> {
        self.known.get(issued.renewal_id.as_ref()?)?.renew_at
    }

    /// Whether the CA is to be asked about this one.
    pub(crate) fn is_due(&self, issued: &Issued, now: SystemTime) -> bool {
        let Some(id) = &issued.renewal_id else { return false };
        self.without_until.is_none_or(|until| until <= now)
            && self.known.get(id).is_none_or(|advice| advice.ask_again <= now)
    }

    /// Forgets certificates that are not in use any more.
    pub(crate) fn retain(&mut self, in_use: &[&Issued]) {
        self.known.retain(|id, _| in_use.iter().any(|issued| issued.renewal_id.as_ref() == Some(id)));
    }

    /// Asks about one certificate.
    ///
    /// # Errors
    /// If the CA has no such service, or cannot be asked: the others need not be asked now either.
    pub(crate) async fn ask(&mut self, account: &Account, issued: &Issued) -> Result<(), AcmeError> {
        let Some((text, id)) = issued.renewal_id.as_ref().and_then(|text| Some((text, identifier(text)?)))
        else {
            return Ok(());
        };
        let now = SystemTime::now();
        match account.renewal_info(&id).await {
            Ok((information, delay)) => {
                let window =
                    (information.suggested_window.start.into(), information.suggested_window.end.into());
                let before = self.known.get(text).and_then(|advice| advice.renew_at);
                let renew_at = choose(window, before, rand::random());
                let ask_again = now + delay.clamp(ASK_INTERVAL_MIN, ASK_INTERVAL_MAX);
                tracing::debug!(names = ?issued.names, "the CA has said when to renew");
                self.known.insert(text.clone(), Advice { renew_at: Some(renew_at), ask_again });
                Ok(())
            }
            Err(error) => {
                self.failed(text, now, matches!(error, Error::Unsupported(_)));
                Err(error.into())
            }
        }
    }

    /// Asks about nothing for a while: the CA has no such service (`for_good`), or could not be asked.
    pub(crate) fn failed(&mut self, id: &str, now: SystemTime, for_good: bool) {
        let interval = if for_good { ASK_INTERVAL_MAX } else { ASK_INTERVAL_MIN };
        self.without_until = Some(now + interval);
        let advice = self.known.entry(id.to_owned()).or_insert(Advice { renew_at: None, ask_again: now });
        advice.ask_again = now + interval;
    }

    /// Whether an order may say that it replaces this one (RFC 9773 §5): the CA knows the service and the certificate.
    pub(crate) fn replaces(&self, issued: &Issued) -> Option<CertificateIdentifier<'static>> {
        let id = issued.renewal_id.as_ref()?;
        self.known.get(id)?.renew_at?;
        identifier(id)
    }
}

/// A time within the window, chosen once: the CA spreads its load by chance (RFC 9773 §4.2).
fn choose((start, end): (SystemTime, SystemTime), before: Option<SystemTime>, chance: f64) -> SystemTime {
    match before {
        Some(before) if start <= before && before <= end => before,
        _ => start + end.duration_since(start).unwrap_or_default().mul_f64(chance.clamp(0.0, 1.0)),
    }
}

fn identifier(text: &str) -> Option<CertificateIdentifier<'static>> {
    let (authority, serial) = text.split_once('.')?;
    Some(CertificateIdentifier {
        authority_key_identifier: authority.to_owned().into(),
        serial: serial.to_owned().into(),
    })
}

/// RFC 9773 §4.3.3: not more often than a minute, not less often than a day; an hour spares both sides.
const ASK_INTERVAL_MIN: Duration = Duration::from_secs(3600);
const ASK_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_chosen_once_and_again_only_if_the_window_moves() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(choose((at(100), at(200)), None, 0.5), at(150));
        assert_eq!(choose((at(100), at(200)), Some(at(110)), 0.5), at(110));
        assert_eq!(
            choose((at(10), at(20)), Some(at(110)), 0.0),
            at(10),
            "sooner, as after a mistake of the CA"
        );
        assert_eq!(choose((at(20), at(10)), None, 0.5), at(20), "a nonsense window does not underflow");
    }
}
