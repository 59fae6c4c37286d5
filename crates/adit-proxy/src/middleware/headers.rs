//! headers: fields set and removed on request and response, CORS, security headers (`ingress-features.md §3.2`).

use adit_config::dynamic;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::cors::Cors;
use super::security::Security;
use super::{Around, BoxFuture, Ctx, Next, go_url, reply};
use crate::headers::X_FORWARDED_FOR;
use crate::message::{Request, Response};

/// `headers`.
pub(super) struct Headers {
    request: Vec<Change>,
    host: Option<String>,
    response: Vec<Change>,
    cors: Option<Cors>,
    security: Option<Security>,
}

/// A field set, or removed where there is no value.
struct Change {
    name: HeaderName,
    value: Option<HeaderValue>,
}

impl Headers {
    pub(super) fn new(config: &dynamic::Headers) -> Result<Self, String> {
        let mut host = None;
        let mut request = Vec::new();
        for (name, value) in &config.custom_request_headers {
            match name.eq_ignore_ascii_case("host") {
                true if !value.is_empty() => host = Some(value.clone()),
                true => {}
                false => request.push(Change::new(name, value)?),
            }
        }
        let response = config.custom_response_headers.iter().map(|(name, value)| Change::new(name, value));
        let headers = Self {
            request,
            host,
            response: response.collect::<Result<_, _>>()?,
            cors: Cors::new(config)?,
            security: Security::new(config)?,
        };
        let is_empty = config.custom_request_headers.is_empty() && headers.response.is_empty();
        let is_empty = is_empty && !config.has_removed_options;
        if is_empty && headers.cors.is_none() && headers.security.is_none() {
            return Err("headers configuration not valid: no option is set".to_owned());
        }
        Ok(headers)
    }

    fn change_request(&self, request: &mut Request, ctx: &mut Ctx) {
        for change in &self.request {
            // Taken off means that the upstream sees none, not even the hop's own.
            if change.value.is_none() && change.name == X_FORWARDED_FOR {
                ctx.append_forwarded_for = false;
            }
            change.apply(&mut request.headers);
        }
        if let Some(host) = &self.host {
            request.host.clone_from(host);
        }
    }

    fn change_response(&self, response: &mut Response, origin: &str) {
        for change in &self.response {
            change.apply(&mut response.headers);
        }
        if let Some(cors) = &self.cors {
            cors.mark(&mut response.headers, origin);
        }
    }
}

impl Around for Headers {
    fn handle<'a>(
        &'a self,
        mut request: Request,
        ctx: &'a mut Ctx,
        next: Next<'a>,
    ) -> BoxFuture<'a, Response> {
        if let Some(answer) = self.cors.as_ref().and_then(|cors| cors.preflight(&request)) {
            return Box::pin(std::future::ready(answer));
        }
        self.change_request(&mut request, ctx);
        let origin = go_url::field(&request.headers, "origin").unwrap_or_default().to_owned();
        Box::pin(async move {
            let mut response = match &self.security {
                None => next.run(request, ctx).await,
                Some(security) if !security.is_allowed(&request) => {
                    ctx.refused("host_not_allowed");
                    reply::error(StatusCode::INTERNAL_SERVER_ERROR, "Bad Host")
                }
                Some(security) => {
                    let is_secure = security.is_secure(&request, ctx);
                    let mut response = next.run(request, ctx).await;
                    security.mark(&mut response.headers, is_secure);
                    response
                }
            };
            self.change_response(&mut response, &origin);
            response
        })
    }
}

impl Change {
    fn new(name: &str, value: &str) -> Result<Self, String> {
        let value = match value {
            "" => None,
            value => Some(field_value(name, value)?),
        };
        Ok(Self { name: field_name(name)?, value })
    }

    fn apply(&self, headers: &mut HeaderMap) {
        match &self.value {
            Some(value) => drop(headers.insert(&self.name, value.clone())),
            None => drop(headers.remove(&self.name)),
        }
    }
}

/// A field's name as the operator wrote it.
pub(super) fn field_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(name).map_err(|_| format!("{name:?} is not a header name"))
}

/// A field's value as the operator wrote it.
pub(super) fn field_value(name: &str, value: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(value.as_bytes()).map_err(|_| format!("{name}: not a header value"))
}

/// Adds a token to `Vary` unless it is there.
pub(super) fn vary(headers: &mut HeaderMap, token: &'static str) {
    let listed = headers.get_all(header::VARY).iter().any(|line| {
        let mut tokens = line.as_bytes().split(|byte| *byte == b',');
        tokens.any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    });
    if !listed {
        headers.append(header::VARY, HeaderValue::from_static(token));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Echo, ctx, request_with};
    use super::super::{Layer, run};
    use super::*;

    async fn through(config: &dynamic::Headers, target: &Echo, request: Request) -> (Response, Ctx) {
        let chain = [Layer::around("m", Headers::new(config).unwrap())];
        let mut ctx = ctx();
        let response = run(&chain, target, request, &mut ctx).await;
        (response, ctx)
    }

    fn map(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[tokio::test]
    async fn fields_are_set_and_an_empty_value_removes() {
        let config = dynamic::Headers {
            custom_request_headers: map(&[
                ("X-A", "1"),
                ("X-B", ""),
                ("host", "inner.test"),
                ("X-Forwarded-For", ""),
            ]),
            custom_response_headers: map(&[("X-C", "2"), ("Server", "")]),
            ..Default::default()
        };
        let target = Echo::default().with("server", "s");
        let asked = request_with("/", &[("x-a", "client"), ("x-b", "client")]);
        let (response, ctx) = through(&config, &target, asked).await;
        let seen = target.seen();
        assert_eq!((seen.headers["x-a"].as_bytes(), seen.headers.get("x-b")), (&b"1"[..], None));
        assert_eq!(seen.host, "inner.test");
        assert_eq!((response.headers["x-c"].as_bytes(), response.headers.get("server")), (&b"2"[..], None));
        assert!(!ctx.append_forwarded_for);
    }

    #[tokio::test]
    async fn a_host_that_is_not_listed_is_refused_with_our_own_fields_on_it() {
        let config = dynamic::Headers {
            allowed_hosts: vec!["good.test".to_owned()],
            hosts_proxy_headers: vec!["X-Host".to_owned()],
            custom_response_headers: map(&[("X-C", "2")]),
            ..Default::default()
        };
        let (response, ctx) = through(&config, &Echo::default(), request_with("/", &[])).await;
        assert_eq!((response.status.as_u16(), ctx.log.refusal), (500, Some("host_not_allowed")));
        assert_eq!(response.headers["x-c"], "2");
        let told = request_with("/", &[("x-host", "GOOD.test")]);
        assert_eq!(through(&config, &Echo::default(), told).await.0.status, 200);
    }

    #[test]
    fn nothing_set_is_a_fault_and_so_is_a_bad_name() {
        assert!(Headers::new(&dynamic::Headers::default()).is_err());
        let config = dynamic::Headers { custom_request_headers: map(&[("a b", "1")]), ..Default::default() };
        assert!(Headers::new(&config).is_err());
    }

    #[test]
    fn vary_lists_a_token_once() {
        let mut headers = HeaderMap::new();
        vary(&mut headers, "Accept-Encoding");
        vary(&mut headers, "Accept-Encoding");
        assert_eq!(headers.get_all("vary").iter().count(), 1);
    }
}
