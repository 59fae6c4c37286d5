//! The `accessControl*` options: cross-origin requests as browsers ask about them (Fetch Standard, CORS protocol).

use adit_config::dynamic;
use adit_route::compile_go_regex;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use regex::Regex;

use super::go_url;
use super::headers::field_value;
use crate::message::{Request, Response};

/// What other origins may do.
pub(super) struct Cors {
    credentials: bool,
    origins: Vec<String>,
    patterns: Vec<Regex>,
    headers: Listed,
    methods: Listed,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    vary: bool,
}

/// A list that is told to browsers.
enum Listed {
    None,
    These(HeaderValue),
    /// `*` together with credentials means nothing to browsers: what was asked for is told instead.
    Asked,
}

impl Cors {
    /// None if no option is set.
    pub(super) fn new(config: &dynamic::Headers) -> Result<Option<Self>, String> {
        let credentials = config.access_control_allow_credentials;
        let expose = &config.access_control_expose_headers;
        let is_set = credentials
            || config.add_vary_header
            || config.access_control_max_age_s.is_some()
            || [
                &config.access_control_allow_headers,
                &config.access_control_allow_methods,
                &config.access_control_allow_origin_list,
                &config.access_control_allow_origin_list_regex,
                expose,
            ]
            .iter()
            .any(|list| !list.is_empty());
        if !is_set {
            return Ok(None);
        }
        let hides_expose = expose.is_empty() || (credentials && expose.iter().any(|name| name == "*"));
        let patterns = &config.access_control_allow_origin_list_regex;
        Ok(Some(Self {
            credentials,
            origins: config.access_control_allow_origin_list.clone(),
            patterns: patterns.iter().map(|text| compile_go_regex(text)).collect::<Result<_, _>>()?,
            headers: Listed::new(&config.access_control_allow_headers, credentials)?,
            methods: Listed::new(&config.access_control_allow_methods, credentials)?,
            expose: (!hides_expose).then(|| joined(expose)).transpose()?,
            max_age: config.access_control_max_age_s.map(HeaderValue::from),
            vary: config.add_vary_header,
        }))
    }

    /// The answer to a browser that asks before it sends; whether its origin fits or not, nobody else is asked.
    pub(super) fn preflight(&self, request: &Request) -> Option<Response> {
        let origin = go_url::field(&request.headers, "origin").filter(|origin| !origin.is_empty())?;
        let method = request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).filter(|m| !m.is_empty())?;
        if request.method != Method::OPTIONS {
            return None;
        }
        let mut response = Response::status(StatusCode::OK);
        let headers = &mut response.headers;
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let asked_headers = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        set(headers, header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.told(asked_headers));
        set(headers, header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.told(Some(method)));
        set(headers, header::ACCESS_CONTROL_ALLOW_ORIGIN, self.allowed(origin));
        set(headers, header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        set(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.clone());
        Some(response)
    }

    /// Tells the browser about the answer of somebody else.
    pub(super) fn mark(&self, headers: &mut HeaderMap, origin: &str) {
        set(headers, header::ACCESS_CONTROL_ALLOW_ORIGIN, self.allowed(origin));
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        set(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.clone());
        if self.vary {
            let vary = match go_url::field(headers, "vary") {
                None | Some("" | "Origin") => "Origin".to_owned(),
                Some(before) => format!("{before},Origin"),
            };
            set(headers, header::VARY, HeaderValue::try_from(vary).ok());
        }
    }

    fn allowed(&self, origin: &str) -> Option<HeaderValue> {
        let asked = || HeaderValue::from_str(origin).ok();
        for item in &self.origins {
            match item.as_str() {
                item if item == origin => return asked(),
                // Browsers take no `*` together with credentials.
                "*" if self.credentials => return asked(),
                "*" => return Some(HeaderValue::from_static("*")),
                _ => {}
            }
        }
        self.patterns.iter().any(|pattern| pattern.is_match(origin)).then(asked).flatten()
    }
}

impl Listed {
    fn new(list: &[String], credentials: bool) -> Result<Self, String> {
        if list.is_empty() {
            return Ok(Self::None);
        }
        if credentials && list.iter().any(|item| item == "*") {
            return Ok(Self::Asked);
        }
        joined(list).map(Self::These)
    }

    fn told(&self, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::These(list) => Some(list.clone()),
            Self::Asked => asked.filter(|asked| !asked.is_empty()).cloned(),
        }
    }
}

fn joined(list: &[String]) -> Result<HeaderValue, String> {
    field_value("accessControl", &list.join(","))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

const TRUE: HeaderValue = HeaderValue::from_static("true");

#[cfg(test)]
mod tests {
    use super::super::tests::request_with;
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    fn config() -> dynamic::Headers {
        dynamic::Headers {
            access_control_allow_methods: list(&["GET", "PUT"]),
            access_control_allow_headers: list(&["X-H"]),
            access_control_allow_origin_list: list(&["https://foo.test"]),
            access_control_max_age_s: Some(100),
            add_vary_header: true,
            ..Default::default()
        }
    }

    fn preflight(config: &dynamic::Headers, origin: &str) -> Option<Response> {
        let mut request = request_with(
            "/",
            &[
                ("origin", origin),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "X-Asked"),
            ],
        );
        request.method = Method::OPTIONS;
        Cors::new(config).unwrap().unwrap().preflight(&request)
    }

    #[test]
    fn a_preflight_is_answered_whether_its_origin_fits_or_not() {
        let answer = preflight(&config(), "https://foo.test").unwrap();
        assert_eq!(answer.headers["access-control-allow-origin"], "https://foo.test");
        assert_eq!(answer.headers["access-control-allow-methods"], "GET,PUT");
        assert_eq!(answer.headers["access-control-max-age"], "100");
        let answer = preflight(&config(), "https://bar.test").unwrap();
        assert_eq!(
            (answer.status, answer.headers.get("access-control-allow-origin")),
            (StatusCode::OK, None)
        );
        assert!(preflight(&config(), "").is_none());
    }

    #[test]
    fn a_star_with_credentials_echoes_what_was_asked() {
        let star = dynamic::Headers {
            access_control_allow_credentials: true,
            access_control_allow_methods: list(&["*"]),
            access_control_allow_headers: list(&["*"]),
            access_control_allow_origin_list: list(&["*"]),
            access_control_expose_headers: list(&["*"]),
            ..Default::default()
        };
        let answer = preflight(&star, "https://any.test").unwrap();
        assert_eq!(answer.headers["access-control-allow-origin"], "https://any.test");
        assert_eq!(answer.headers["access-control-allow-methods"], "PUT");
        assert_eq!(answer.headers["access-control-allow-headers"], "X-Asked");
        assert!(!answer.headers.contains_key("access-control-expose-headers"));
    }

    #[test]
    fn an_answer_is_marked_and_varies_by_origin() {
        let cors = Cors::new(&config()).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("vary", HeaderValue::from_static("Accept"));
        cors.mark(&mut headers, "https://foo.test");
        assert_eq!(headers["vary"], "Accept,Origin");
        assert_eq!(headers["access-control-allow-origin"], "https://foo.test");
        assert!(Cors::new(&dynamic::Headers::default()).unwrap().is_none());
    }
}
