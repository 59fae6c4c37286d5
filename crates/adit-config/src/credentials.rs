//! What a connector proves itself with: token, credentials file, origin certificate (`tunnel-protocol.md §7.1`).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::{Secret, TunnelId};

/// Everything that a connector needs to register one tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelCredentials {
    /// Account that the tunnel belongs to; opaque text.
    pub account_tag: String,
    /// Shared secret of connector and edge.
    pub secret: Secret,
    /// Which tunnel.
    pub tunnel_id: TunnelId,
    /// Edge region prefix, such as `fed`; absent for the world.
    pub endpoint: Option<String>,
}

/// cloudflared's `cert.pem`: the right to use the account API. Only read, to find out what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginCertificate {
    /// Zone the certificate was issued for.
    pub zone_id: String,
    /// Account; absent in certificates from before accounts were written.
    pub account_id: Option<String>,
    /// API token.
    pub api_token: Secret,
    /// Endpoint in lower case, such as `fed`.
    pub endpoint: Option<String>,
}

/// Why a text is no credential; never shows any of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Longer than any real credential.
    #[error("credential is longer than 16 KiB")]
    TooLong,
    /// A token that is not standard base64.
    #[error("token is not base64")]
    NotBase64,
    /// The content is not a JSON object.
    #[error("credential is not a JSON object")]
    NotJson,
    /// A field is absent, empty or of the wrong type.
    #[error("credential has no valid `{0}`")]
    Field(&'static str),
    /// The PEM framing is broken or there is no block.
    #[error("certificate is not PEM")]
    NotPem,
    /// A block that has no business in an origin certificate.
    #[error("certificate has an unknown block")]
    UnknownBlock,
    /// More than one token block.
    #[error("certificate has more than one token")]
    SeveralTokens,
    /// No token block, or one without zone and API token.
    #[error("certificate has no token")]
    NoToken,
}

impl TunnelCredentials {
    /// Reads a tunnel token: base64 of JSON with `a`, `s`, `t` and perhaps `e`.
    pub fn from_token(token: &str) -> Result<Self, CredentialsError> {
        let token = token.trim();
        if token.len() > CREDENTIAL_BYTES_MAX {
            return Err(CredentialsError::TooLong);
        }
        let json = STANDARD.decode(token).map(Zeroizing::new).map_err(|_| CredentialsError::NotBase64)?;
        Self::from_fields(&json, ["a", "s", "t", "e"])
    }

    /// Writes the token that [`Self::from_token`] and cloudflared read.
    pub fn to_token(&self) -> Zeroizing<String> {
        let json = Zeroizing::new(self.to_json(["a", "s", "t", "e"]).to_string());
        Zeroizing::new(STANDARD.encode(json.as_bytes()))
    }

    /// Reads a credentials file: JSON with `AccountTag`, `TunnelSecret`, `TunnelID` and perhaps `Endpoint`, keys in any case.
    pub fn from_credentials_json(text: &str) -> Result<Self, CredentialsError> {
        if text.len() > CREDENTIAL_BYTES_MAX {
            return Err(CredentialsError::TooLong);
        }
        Self::from_fields(text.as_bytes(), FILE_KEYS)
    }

    /// Reads the credentials file of a tunnel whose id is known: that id wins over the one inside, which old files lack.
    pub fn from_credentials_json_of(text: &str, tunnel_id: TunnelId) -> Result<Self, CredentialsError> {
        if text.len() > CREDENTIAL_BYTES_MAX {
            return Err(CredentialsError::TooLong);
        }
        Self::from_object(&object(text.as_bytes())?, FILE_KEYS, Some(tunnel_id))
    }

    /// Writes the credentials file that [`Self::from_credentials_json`] and cloudflared read.
    pub fn to_credentials_json(&self) -> Zeroizing<String> {
        Zeroizing::new(self.to_json(FILE_KEYS).to_string())
    }

    fn from_fields(json: &[u8], keys: [&'static str; 4]) -> Result<Self, CredentialsError> {
        Self::from_object(&object(json)?, keys, None)
    }

    fn from_object(
        fields: &Map<String, Value>,
        [account, secret, tunnel, endpoint]: [&'static str; 4],
        tunnel_id: Option<TunnelId>,
    ) -> Result<Self, CredentialsError> {
        let required = |key| text_of(fields, key)?.ok_or(CredentialsError::Field(key));
        Ok(Self {
            account_tag: required(account)?.to_owned(),
            secret: Secret::from_base64(required(secret)?).ok_or(CredentialsError::Field(secret))?,
            tunnel_id: match tunnel_id {
                Some(id) => id,
                None => required(tunnel)?.parse().map_err(|_| CredentialsError::Field(tunnel))?,
            },
            endpoint: text_of(fields, endpoint)?.map(str::to_owned),
        })
    }

    fn to_json(&self, [account, secret, tunnel, endpoint]: [&str; 4]) -> Value {
        let mut fields = json!({
            account: self.account_tag,
            secret: self.secret.to_base64().as_str(),
            tunnel: self.tunnel_id.to_string(),
        });
        if let Some(name) = &self.endpoint {
            fields[endpoint] = json!(name);
        }
        fields
    }
}

impl OriginCertificate {
    /// Reads the PEM text of a `cert.pem`; legacy key and certificate blocks are skipped.
    pub fn from_pem(text: &str) -> Result<Self, CredentialsError> {
        if text.len() > CREDENTIAL_BYTES_MAX {
            return Err(CredentialsError::TooLong);
        }
        let mut found = None;
        for (label, content) in pem_blocks(text)? {
            match label {
                "PRIVATE KEY" | "CERTIFICATE" => {}
                "ARGO TUNNEL TOKEN" if found.is_some() => return Err(CredentialsError::SeveralTokens),
                "ARGO TUNNEL TOKEN" => found = Some(Self::from_json(&content)?),
                _ => return Err(CredentialsError::UnknownBlock),
            }
        }
        found.ok_or(CredentialsError::NoToken)
    }

    fn from_json(json: &[u8]) -> Result<Self, CredentialsError> {
        let fields = object(json)?;
        let owned = |key| Ok(text_of(&fields, key)?.map(str::to_owned));
        Ok(Self {
            zone_id: owned("zoneID")?.ok_or(CredentialsError::NoToken)?,
            account_id: owned("accountID")?,
            api_token: owned("apiToken")?
                .map(|token| Secret::new(token.into_bytes()))
                .ok_or(CredentialsError::NoToken)?,
            endpoint: owned("endpoint")?.map(|endpoint| endpoint.to_lowercase()),
        })
    }
}

fn object(json: &[u8]) -> Result<Map<String, Value>, CredentialsError> {
    serde_json::from_slice(json).map_err(|_| CredentialsError::NotJson)
}

/// Key match ignores case as Go's JSON reader does; an empty text counts as absent.
fn text_of<'a>(
    fields: &'a Map<String, Value>,
    key: &'static str,
) -> Result<Option<&'a str>, CredentialsError> {
    let found = fields
        .get(key)
        .or_else(|| fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value));
    match found {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(CredentialsError::Field(key)),
    }
}

/// Label and content.
type PemBlock<'a> = (&'a str, Zeroizing<Vec<u8>>);

/// Label and content of every block (RFC 7468); text between blocks is commentary.
fn pem_blocks(text: &str) -> Result<Vec<PemBlock<'_>>, CredentialsError> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {label}-----");
        let mut body = Zeroizing::new(String::new());
        loop {
            match lines.next() {
                None => return Err(CredentialsError::NotPem),
                Some(line) if line == end => break,
                Some(line) => body.push_str(line),
            }
        }
        let content = STANDARD.decode(body.as_bytes()).map_err(|_| CredentialsError::NotPem)?;
        blocks.push((label, Zeroizing::new(content)));
    }
    if blocks.is_empty() { Err(CredentialsError::NotPem) } else { Ok(blocks) }
}

/// Real tokens have about 200 bytes, certificates with legacy blocks about 5 KiB.
const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

const FILE_KEYS: [&str; 4] = ["AccountTag", "TunnelSecret", "TunnelID", "Endpoint"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn credentials(endpoint: Option<&str>) -> TunnelCredentials {
        TunnelCredentials {
            account_tag: "account".into(),
            secret: Secret::new(vec![7; 32]),
            tunnel_id: TunnelId(Uuid::from_u128(0x3f2b)),
            endpoint: endpoint.map(str::to_owned),
        }
    }

    #[test]
    fn credentials_survive_both_formats() {
        for given in [credentials(None), credentials(Some("fed"))] {
            assert_eq!(TunnelCredentials::from_token(&given.to_token()), Ok(given.clone()));
            assert_eq!(TunnelCredentials::from_credentials_json(&given.to_credentials_json()), Ok(given));
        }
    }

    #[test]
    fn keys_of_a_credentials_file_are_case_insensitive() {
        let text = r#"{"accounttag":"account","TUNNELSECRET":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
            "tunnelId":"00000000-0000-0000-0000-000000003f2b","TunnelName":"home","Endpoint":""}"#;
        assert_eq!(TunnelCredentials::from_credentials_json(text), Ok(credentials(None)));
    }

    #[test]
    fn an_old_credentials_file_gets_the_id_that_is_known() {
        let text =
            r#"{"AccountTag":"account","TunnelSecret":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}"#;
        let id = TunnelId(Uuid::from_u128(0x3f2b));
        assert_eq!(TunnelCredentials::from_credentials_json_of(text, id), Ok(credentials(None)));
        let missing = TunnelCredentials::from_credentials_json(text);
        assert_eq!(missing, Err(CredentialsError::Field("TunnelID")));
    }

    #[test]
    fn an_unusable_token_names_what_is_wrong() {
        use CredentialsError as Error;
        let token = |json: &str| TunnelCredentials::from_token(&STANDARD.encode(json)).unwrap_err();
        assert_eq!(TunnelCredentials::from_token("%%%"), Err(Error::NotBase64));
        assert_eq!(TunnelCredentials::from_token(&"A".repeat(17 * 1024)), Err(Error::TooLong));
        assert_eq!(token("hello"), Error::NotJson);
        assert_eq!(token(r#"{"s":"AAAA","t":"00000000-0000-0000-0000-000000003f2b"}"#), Error::Field("a"));
        assert_eq!(
            token(r#"{"a":"x","s":"A","t":"00000000-0000-0000-0000-000000003f2b"}"#),
            Error::Field("s")
        );
        assert_eq!(token(r#"{"a":"x","s":"AAAA","t":"home"}"#), Error::Field("t"));
        assert_eq!(token(r#"{"a":1,"s":"AAAA","t":"home"}"#), Error::Field("a"));
    }

    #[test]
    fn the_secret_does_not_show_in_debug() {
        assert!(!format!("{:?}", credentials(None)).contains('7'));
    }

    fn pem(label: &str, json: &str) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(json))
    }

    #[test]
    fn an_origin_certificate_is_read_past_legacy_blocks() {
        let json = r#"{"zoneID":"z","accountID":"a","apiToken":"t","endpoint":"FED"}"#;
        let text = pem("CERTIFICATE", "old") + "note\n" + &pem("ARGO TUNNEL TOKEN", json);
        let certificate = OriginCertificate::from_pem(&text).unwrap();
        assert_eq!(certificate.zone_id, "z");
        assert_eq!(certificate.account_id.as_deref(), Some("a"));
        assert_eq!(certificate.api_token.expose(), b"t");
        assert_eq!(certificate.endpoint.as_deref(), Some("fed"));
    }

    #[test]
    fn each_bad_certificate_has_its_name() {
        use CredentialsError as Error;
        let error = |text: &str| OriginCertificate::from_pem(text).unwrap_err();
        let token = pem("ARGO TUNNEL TOKEN", r#"{"zoneID":"z","apiToken":"t"}"#);
        assert_eq!(error(""), Error::NotPem);
        assert_eq!(error("-----BEGIN CERTIFICATE-----\nAAAA"), Error::NotPem);
        assert_eq!(error(&pem("CERTIFICATE", "old")), Error::NoToken);
        assert_eq!(error(&pem("SURPRISE", "x")), Error::UnknownBlock);
        assert_eq!(error(&token.repeat(2)), Error::SeveralTokens);
        assert_eq!(error(&pem("ARGO TUNNEL TOKEN", r#"{"zoneID":"z"}"#)), Error::NoToken);
    }

    proptest! {
        #[test]
        fn any_credentials_survive_their_token(
            account in "\\PC{1,40}", secret in proptest::collection::vec(any::<u8>(), 1..64),
            id in any::<u128>(), endpoint in proptest::option::of("[a-z]{1,8}"),
        ) {
            let given = TunnelCredentials {
                account_tag: account, secret: Secret::new(secret), tunnel_id: TunnelId(Uuid::from_u128(id)), endpoint,
            };
            prop_assert_eq!(TunnelCredentials::from_token(&given.to_token()), Ok(given.clone()));
            prop_assert_eq!(TunnelCredentials::from_credentials_json(&given.to_credentials_json()), Ok(given));
        }

        #[test]
        fn any_text_is_credentials_or_an_error(text in "\\PC{0,200}") {
            let _ = (TunnelCredentials::from_token(&text), TunnelCredentials::from_credentials_json(&text));
            let _ = OriginCertificate::from_pem(&text);
        }
    }
}
