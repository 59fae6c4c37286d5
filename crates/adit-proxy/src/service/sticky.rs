//! Sticky sessions: the cookie that names the member a visitor was sent to before.
//!
//! Names and values are made as Traefik makes them (`ingress-features.md §4`), so that sessions survive a move.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_config::dynamic::{Cookie, SameSite};
use http::header::{self, HeaderMap, HeaderValue};
use sha1::Digest;

/// The cookie of one group of members.
#[derive(Debug)]
pub(super) struct Sticky {
    name: String,
    /// What follows `name=value` in `Set-Cookie`, up to `Expires` and behind it.
    attributes: (String, String),
    /// From the setting of a cookie to its end.
    lifetime_s: Option<i64>,
    /// Member by cookie value.
    members: HashMap<String, usize>,
    /// Member by the values that older versions gave out.
    older: HashMap<String, usize>,
    /// Cookie value by member.
    values: Vec<String>,
}

/// Whom a visitor's cookie names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    /// The member.
    pub(super) index: usize,
    /// True if the cookie is to be written anew, because its value is of an older kind.
    pub(super) rewrite: bool,
}

impl Sticky {
    /// The cookie of `service` (`name@provider`) whose members have these names (a server's name is its URL).
    pub(super) fn new<'a>(
        cookie: &Cookie,
        service: &str,
        members: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let name = match cookie.name.as_deref() {
            Some(name) if !name.is_empty() => sanitize(name),
            _ => default_name(service),
        };
        let mut sticky = Self {
            name,
            attributes: (place(cookie), attributes(cookie)),
            lifetime_s: Some(cookie.expires_s).filter(|seconds| *seconds != 0),
            members: HashMap::new(),
            older: HashMap::new(),
            values: Vec::new(),
        };
        for (index, member) in members.into_iter().enumerate() {
            let value = hash(member);
            let fnv = fnv(member.as_bytes());
            sticky.members.insert(value.clone(), index);
            sticky.older.insert(fnv_again(&fnv), index);
            sticky.older.insert(fnv, index);
            sticky.older.insert(member.to_owned(), index);
            sticky.values.push(value);
        }
        sticky
    }

    /// The member that the request's cookie names, if there is one.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<Remembered> {
        let value = cookie(headers, &self.name)?;
        if let Some(index) = self.members.get(value) {
            return Some(Remembered { index: *index, rewrite: false });
        }
        self.older.get(value).map(|index| Remembered { index: *index, rewrite: true })
    }

    /// Adds the cookie that names `index` to a response.
    pub(super) fn write(&self, headers: &mut HeaderMap, index: usize) {
        let (place, attributes) = &self.attributes;
        let expires = self.lifetime_s.map(expires).unwrap_or_default();
        let text = format!("{}={}{place}{expires}{attributes}", self.name, self.values[index]);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

/// `Expires`, never before 1970, which is as far back as its form goes.
fn expires(lifetime_s: i64) -> String {
    let lifetime = Duration::from_secs(lifetime_s.unsigned_abs());
    let now = SystemTime::now();
    let end = if lifetime_s > 0 { now.checked_add(lifetime) } else { now.checked_sub(lifetime) };
    let last = UNIX_EPOCH + Duration::from_secs(LAST_SECOND);
    let end = end.filter(|end| *end >= UNIX_EPOCH).unwrap_or(if lifetime_s > 0 { last } else { UNIX_EPOCH });
    format!("; Expires={}", httpdate::fmt_http_date(end.min(last)))
}

fn place(cookie: &Cookie) -> String {
    let mut text = String::new();
    if let Some(path) = cookie.path.as_deref().filter(|p| !p.is_empty()) {
        let path: String = path.chars().filter(|c| matches!(c, ' '..='~') && *c != ';').collect();
        let _ = write!(text, "; Path={path}");
    }
    if let Some(domain) = cookie.domain.as_deref() {
        // RFC 6265 §5.2.3: a leading dot means nothing.
        let domain = domain.strip_prefix('.').unwrap_or(domain);
        if !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
            let _ = write!(text, "; Domain={domain}");
        }
    }
    text
}

fn attributes(cookie: &Cookie) -> String {
    let mut text = String::new();
    match cookie.max_age_s {
        0 => {}
        seconds => {
            let _ = write!(text, "; Max-Age={}", seconds.max(0));
        }
    }
    if cookie.http_only {
        text.push_str("; HttpOnly");
    }
    if cookie.secure {
        text.push_str("; Secure");
    }
    match cookie.same_site {
        None => {}
        Some(SameSite::None) => text.push_str("; SameSite=None"),
        Some(SameSite::Lax) => text.push_str("; SameSite=Lax"),
        Some(SameSite::Strict) => text.push_str("; SameSite=Strict"),
    }
    text
}

/// The value of the first cookie of this name (RFC 6265 §4.2), quotes taken off.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok()).find_map(|line| {
        line.split(';').find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            (key.trim() == name).then_some(value)
        })
    })
}

fn default_name(service: &str) -> String {
    let digest = sha1::Sha1::digest(format!("_TRAEFIK_BACKEND_{service}"));
    format!("_{}", &hex(&digest)[..NAME_DIGITS])
}

/// What may not be in a token (RFC 9110 §5.6.2) becomes an underscore.
fn sanitize(name: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^`|~".contains(c);
    name.chars().map(|c| if keep(c) { c } else { '_' }).collect()
}

fn hash(member: &str) -> String {
    let mut text = hex(&sha2::Sha256::digest(member));
    text.truncate(VALUE_DIGITS);
    text
}

/// FNV-1 with 64 bits, in hexadecimal without leading zeros.
fn fnv(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*b));
    format!("{hash:x}")
}

/// Even older cookies hold the hash of the hash.
fn fnv_again(once: &str) -> String {
    fnv(once.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Digits of the hash in a cookie's name.
const NAME_DIGITS: usize = 5;
/// Digits of the hash in a cookie's value.
const VALUE_DIGITS: usize = 16;
/// The end of the year 9999: a date has four digits for the year (RFC 9110 §5.6.7).
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: [&str; 2] = ["http://10.0.0.1:80", "http://10.0.0.2:80"];

    fn request(cookie: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, cookie.parse().unwrap());
        headers
    }

    #[test]
    fn a_cookie_expires_so_long_after_it_is_set() {
        let written = |expires_s: i64| {
            let cookie = Cookie { name: Some("c".to_owned()), expires_s, max_age_s: 5, ..Cookie::default() };
            let mut headers = HeaderMap::new();
            Sticky::new(&cookie, "s@file", ["a"]).write(&mut headers, 0);
            headers[header::SET_COOKIE].to_str().unwrap().to_owned()
        };
        let text = written(3600);
        let (place, rest) = text.split_once("; Expires=").unwrap();
        let (date, rest) = rest.split_once("; ").unwrap();
        assert!(place.ends_with("; Path=/") && rest == "Max-Age=5", "{text}");
        let left = httpdate::parse_http_date(date).unwrap().duration_since(SystemTime::now()).unwrap();
        assert!((3590..=3600).contains(&left.as_secs()), "{text}");
        assert!(
            written(i64::MIN).contains("Expires=Thu, 01 Jan 1970") && written(i64::MAX).contains(" 9999 ")
        );
        assert!(!written(0).contains("Expires"));
    }

    #[test]
    fn default_name_and_value_are_traefiks() {
        let sticky = Sticky::new(&Cookie::default(), "e@file", SERVERS);
        let mut headers = HeaderMap::new();
        sticky.write(&mut headers, 0);
        assert_eq!(headers[header::SET_COOKIE], "_1ffd5=df5bd2f9c0180410; Path=/");
    }

    #[test]
    fn a_cookie_names_its_server() {
        let named = Cookie { name: Some("lb".to_owned()), ..Cookie::default() };
        let sticky = Sticky::new(&named, "e@file", SERVERS);
        let found = sticky.find(&request("a=1; lb=e0c6f0ca44f87f06; c"));
        assert_eq!(found, Some(Remembered { index: 1, rewrite: false }));
        assert_eq!(sticky.find(&request("lb=\"e0c6f0ca44f87f06\"")), found);
        assert_eq!(sticky.find(&request("lb=unknown")), None);
        assert_eq!(sticky.find(&HeaderMap::new()), None);
    }

    #[test]
    fn older_values_are_understood_and_written_anew() {
        let named = Cookie { name: Some("lb".to_owned()), ..Cookie::default() };
        let sticky = Sticky::new(&named, "e@file", SERVERS);
        let once = fnv(SERVERS[1].as_bytes());
        for value in [once.clone(), fnv_again(&once), SERVERS[1].to_owned()] {
            let found = sticky.find(&request(&format!("lb={value}")));
            assert_eq!(found, Some(Remembered { index: 1, rewrite: true }), "{value}");
        }
    }

    #[test]
    fn fnv_1_has_its_published_values() {
        // The reference vectors of the algorithm's authors: FNV-1, 64 bits.
        assert_eq!(fnv(b""), "cbf29ce484222325");
        assert_eq!(fnv(b"a"), "af63bd4c8601b7be");
        assert_eq!(fnv(b"foobar"), "340d8765a4dda9c2");
    }

    #[test]
    fn attributes_are_in_gos_order() {
        let cookie = Cookie {
            name: Some("l b".to_owned()),
            secure: true,
            http_only: true,
            same_site: Some(SameSite::Strict),
            max_age_s: 42,
            expires_s: 0,
            path: Some("/foo".to_owned()),
            domain: Some(".example.com".to_owned()),
        };
        let sticky = Sticky::new(&cookie, "e@file", ["x"]);
        let mut headers = HeaderMap::new();
        sticky.write(&mut headers, 0);
        let want = "l_b=2d711642b726b044; Path=/foo; Domain=example.com; Max-Age=42; HttpOnly; Secure; SameSite=Strict";
        assert_eq!(headers[header::SET_COOKIE], want);
    }

    #[test]
    fn a_negative_age_deletes_and_an_empty_path_is_left_out() {
        let cookie = Cookie { max_age_s: -1, path: None, ..Cookie::default() };
        assert_eq!(attributes(&cookie), "; Max-Age=0");
    }
}
