//! Access tokens of visitors (`tunnel-protocol.md §7.6`).

use adit_config::AccessRequirement;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use serde_json::Value;

use crate::Keys;

/// Request header that carries the token.
pub const ACCESS_HEADER: &str = "cf-access-jwt-assertion";

/// Longest token that is looked at; real ones have about 1 KiB.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Who passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `sub` of the token; empty for service tokens.
    pub subject: String,
    /// `email` of the token, for people.
    pub email: Option<String>,
}

/// Why a visitor did not pass.
///
/// The first two are about the visitor and answered with 403; the others mean that the token could not be verified and
/// are answered like a failed origin (502), as cloudflared does (`tunnel-protocol.md §7.6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AccessRefusal {
    /// No token was sent.
    #[error("no Access token was sent")]
    Missing,
    /// The token is for none of the audiences that are let in.
    #[error("the Access token is for another audience")]
    Audience,
    /// Not three parts of base64 and JSON, or too long.
    #[error("the Access token is malformed")]
    Malformed,
    /// Signed with anything but RS256, or with demands that we do not know.
    #[error("the Access token is not signed with RS256")]
    Algorithm,
    /// No key of the team made the signature.
    #[error("no key of the Access team made the token's signature")]
    Signature,
    /// Issued by another team.
    #[error("the Access token has another issuer")]
    Issuer,
    /// Past its end.
    #[error("the Access token has expired")]
    Expired,
    /// Before its beginning, by more than the leeway.
    #[error("the Access token is not valid yet")]
    NotYetValid,
}

impl AccessRefusal {
    /// Its name in logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "access_missing",
            Self::Audience => "access_audience",
            Self::Malformed => "access_malformed",
            Self::Algorithm => "access_algorithm",
            Self::Signature => "access_signature",
            Self::Issuer => "access_issuer",
            Self::Expired => "access_expired",
            Self::NotYetValid => "access_not_yet_valid",
        }
    }

    /// Whether the visitor is forbidden (403), as opposed to the token not being verifiable (502).
    pub fn is_forbidden(self) -> bool {
        matches!(self, Self::Missing | Self::Audience)
    }
}

/// Checks a token against the team's keys and the rule's requirement; `now_secs` is Unix time in seconds.
pub fn verify_access(
    token: Option<&str>,
    keys: &Keys,
    requirement: &AccessRequirement,
    now_secs: u64,
) -> Result<Identity, AccessRefusal> {
    let token = token.filter(|token| !token.is_empty()).ok_or(AccessRefusal::Missing)?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(AccessRefusal::Malformed);
    }
    let header = decode_header(token).map_err(|_| AccessRefusal::Malformed)?;
    check_header(&header)?;
    let claims = verified_claims(token, &header, keys)?;
    check_claims(&claims, requirement, now_secs)?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Identity { subject: text("sub").unwrap_or_default(), email: text("email") })
}

fn check_header(header: &Header) -> Result<(), AccessRefusal> {
    // RFC 7515 §4.1.11: a token with extensions marked critical must be refused by who does not know them.
    let is_critical = header.crit.is_some();
    match header.alg == Algorithm::RS256 && !is_critical {
        true => Ok(()),
        false => Err(AccessRefusal::Algorithm),
    }
}

/// The claims, once a key of the team has been found to have signed them. Times and names are checked by the caller:
/// the library would ask the clock.
fn verified_claims(token: &str, header: &Header, keys: &Keys) -> Result<Value, AccessRefusal> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    keys.candidates(header.kid.as_deref())
        .find_map(|key| decode::<Value>(token, key, &validation).ok())
        .map(|decoded| decoded.claims)
        .ok_or(AccessRefusal::Signature)
}

fn check_claims(claims: &Value, requirement: &AccessRequirement, now_secs: u64) -> Result<(), AccessRefusal> {
    let issuer = claims.get("iss").and_then(Value::as_str);
    if requirement.team_name.is_empty() || issuer != Some(requirement.issuer().as_str()) {
        return Err(AccessRefusal::Issuer);
    }
    let expiry = seconds(claims, "exp").ok_or(AccessRefusal::Expired)?;
    if expiry <= now_secs {
        return Err(AccessRefusal::Expired);
    }
    if claims.get("nbf").is_some() {
        let start = seconds(claims, "nbf").ok_or(AccessRefusal::NotYetValid)?;
        if start > now_secs.saturating_add(NOT_BEFORE_LEEWAY_SECS) {
            return Err(AccessRefusal::NotYetValid);
        }
    }
    let is_wanted = |audience: &Value| {
        audience.as_str().is_some_and(|audience| requirement.aud_tags.iter().any(|tag| tag == audience))
    };
    let is_let_in = match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(is_wanted),
        Some(audience) => is_wanted(audience),
        None => false,
    };
    if is_let_in { Ok(()) } else { Err(AccessRefusal::Audience) }
}

/// A NumericDate (RFC 7519 §2), which may have a fraction.
fn seconds(claims: &Value, name: &str) -> Option<u64> {
    let value = claims.get(name)?;
    value.as_u64().or_else(|| value.as_f64().filter(|number| *number >= 0.0).map(|number| number as u64))
}

/// As the library that cloudflared uses allows (`tunnel-protocol.md §7.6`).
const NOT_BEFORE_LEEWAY_SECS: u64 = 5 * 60;

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::{KeyPair, KeySize},
        signature::{KeyPair as _, RSA_PKCS1_SHA256},
    };
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    static PAIR: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());
    static KEYS: LazyLock<Keys> = LazyLock::new(|| {
        let key = PAIR.public_key();
        let number = |value: &[u8]| BASE64.encode(value);
        let key = json!({
            "kid": "one", "kty": "RSA", "alg": "RS256", "use": "sig",
            "n": number(key.modulus().big_endian_without_leading_zero()),
            "e": number(key.exponent().big_endian_without_leading_zero()),
        });
        Keys::from_json(&json!({ "keys": [key] }).to_string()).unwrap()
    });

    fn signed(header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let mut signature = vec![0; PAIR.public_modulus_len()];
        PAIR.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        format!("{message}.{}", BASE64.encode(signature))
    }

    fn header() -> Value {
        json!({ "alg": "RS256", "kid": "one", "typ": "JWT" })
    }

    /// The claims of a good token, with some replaced.
    fn claims(changes: &Value) -> Value {
        let mut claims = json!({
            "iss": "https://team.cloudflareaccess.com", "aud": ["tag"], "exp": NOW + 60, "nbf": NOW - 60,
            "sub": "42", "email": "me@example.com",
        });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    fn requirement() -> AccessRequirement {
        AccessRequirement {
            team_name: "team".into(),
            aud_tags: vec!["other".into(), "tag".into()],
            environment: String::new(),
        }
    }

    fn verify(token: &str) -> Result<Identity, AccessRefusal> {
        verify_access(Some(token), &KEYS, &requirement(), NOW)
    }

    #[test]
    fn a_good_token_names_its_bearer() {
        let identity = verify(&signed(&header(), &claims(&json!({})))).unwrap();
        assert_eq!(identity, Identity { subject: "42".into(), email: Some("me@example.com".into()) });
        assert!(verify(&signed(&json!({ "alg": "RS256" }), &claims(&json!({ "aud": "tag" })))).is_ok());
    }

    #[test]
    fn each_wrong_claim_has_its_refusal() {
        for (changes, refusal) in [
            (json!({ "iss": "https://team.cloudflareaccess.com/" }), AccessRefusal::Issuer),
            (json!({ "iss": null }), AccessRefusal::Issuer),
            (json!({ "exp": NOW }), AccessRefusal::Expired),
            (json!({ "exp": null }), AccessRefusal::Expired),
            (json!({ "exp": "soon" }), AccessRefusal::Expired),
            (json!({ "nbf": NOW + 301 }), AccessRefusal::NotYetValid),
            (json!({ "aud": ["nobody"] }), AccessRefusal::Audience),
            (json!({ "aud": [] }), AccessRefusal::Audience),
            (json!({ "aud": null }), AccessRefusal::Audience),
        ] {
            let token = signed(&header(), &claims(&changes));
            assert_eq!(verify(&token), Err(refusal), "{changes}");
        }
        assert!(verify(&signed(&header(), &claims(&json!({ "nbf": NOW + 300 })))).is_ok());
    }

    #[test]
    fn an_empty_requirement_lets_nobody_in() {
        let token = signed(&header(), &claims(&json!({})));
        let no_audience = AccessRequirement { aud_tags: Vec::new(), ..requirement() };
        let refusal = verify_access(Some(&token), &KEYS, &no_audience, NOW);
        assert_eq!(refusal, Err(AccessRefusal::Audience));
        let no_team = AccessRequirement { team_name: String::new(), ..requirement() };
        let token = signed(&header(), &claims(&json!({ "iss": no_team.issuer() })));
        assert_eq!(verify_access(Some(&token), &KEYS, &no_team, NOW), Err(AccessRefusal::Issuer));
    }

    #[test]
    fn only_rs256_by_a_known_key_counts() {
        let token = signed(&header(), &claims(&json!({})));
        let forged = format!(
            "{}A.{}",
            &token[..token.rfind('.').unwrap() - 1],
            &token[token.rfind('.').unwrap() + 1..]
        );
        assert_eq!(verify(&forged), Err(AccessRefusal::Signature));
        let other_key = signed(&json!({ "alg": "RS256", "kid": "two" }), &claims(&json!({})));
        assert_eq!(verify(&other_key), Err(AccessRefusal::Signature));
        let hmac = signed(&json!({ "alg": "HS256", "kid": "one" }), &claims(&json!({})));
        assert_eq!(verify(&hmac), Err(AccessRefusal::Algorithm));
        let stronger = signed(&json!({ "alg": "RS512", "kid": "one" }), &claims(&json!({})));
        assert_eq!(verify(&stronger), Err(AccessRefusal::Algorithm));
        let critical = signed(&json!({ "alg": "RS256", "kid": "one", "crit": ["x"] }), &claims(&json!({})));
        assert_eq!(verify(&critical), Err(AccessRefusal::Algorithm));
        assert_eq!(
            verify_access(Some(&token), &Keys::default(), &requirement(), NOW),
            Err(AccessRefusal::Signature)
        );
    }

    #[test]
    fn a_missing_token_is_forbidden_and_a_malformed_one_unverifiable() {
        assert_eq!(verify_access(None, &KEYS, &requirement(), NOW), Err(AccessRefusal::Missing));
        assert_eq!(verify(""), Err(AccessRefusal::Missing));
        assert_eq!(verify("a.b"), Err(AccessRefusal::Malformed));
        assert_eq!(verify(&"a".repeat(TOKEN_BYTES_MAX + 1)), Err(AccessRefusal::Malformed));
        let unsigned = format!("{}.{}.", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode("{}"));
        assert_eq!(verify(&unsigned), Err(AccessRefusal::Malformed));
        assert!(AccessRefusal::Missing.is_forbidden() && AccessRefusal::Audience.is_forbidden());
        assert!(!AccessRefusal::Malformed.is_forbidden() && !AccessRefusal::Expired.is_forbidden());
    }

    proptest! {
        #[test]
        fn any_text_is_refused(token in "[\\PC.]{0,80}") {
            prop_assert!(verify(&token).is_err());
        }
    }
}
