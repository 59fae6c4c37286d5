//! forwardAuth: another server says whether a request may pass (`ingress-features.md §3.3`). It fails closed.

mod location;
mod server;
#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};

use adit_config::dynamic;
use adit_route::compile_go_regex;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use regex::Regex;

use self::server::{Answer, AskError, Server};
use super::headers::field_name;
use super::{Around, BoxFuture, Ctx, Next, go_url};
use crate::body::{Body, BodyError, Length};
use crate::headers::{X_FORWARDED_FOR, is_of_the_hop, remove_hop_by_hop};
use crate::message::{Request, Response};
use crate::service::replay::{KeepError, keep_whole};

/// `forwardAuth`.
pub(super) struct ForwardAuth {
    server: Server,
    trust: Option<bool>,
    /// Fields of the request that the server sees; none for all.
    request_fields: Option<Vec<HeaderName>>,
    /// Fields of its answer that the upstream sees in place of the visitor's.
    response_fields: Vec<HeaderName>,
    response_fields_regex: Option<Regex>,
    cookies: Vec<String>,
    user_field: Option<HeaderName>,
    forward_body: bool,
    body_bytes_max: u64,
    /// That is [`BODY_BYTES_MAX`], not what the operator said.
    is_own_limit: bool,
    answer_bytes_max: u64,
    keeps_location: bool,
    keeps_method: bool,
    sign_in: Option<String>,
    /// The last question was not answered.
    is_down: AtomicBool,
}

impl ForwardAuth {
    pub(super) fn new(config: &dynamic::ForwardAuth) -> Result<Self, String> {
        let names =
            |texts: &[String]| texts.iter().map(|text| field_name(text)).collect::<Result<Vec<_>, _>>();
        let mut request_fields = names(&config.auth_request_headers)?;
        if !request_fields.is_empty() && config.trust_forward_header == Some(true) {
            request_fields.extend(CLAIMS.iter().cloned());
            // A name that is listed as well would have its lines sent twice.
            request_fields.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            request_fields.dedup();
        }
        let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let regex = text(&config.auth_response_headers_regex);
        let user_field = text(&config.header_field);
        Ok(Self {
            server: Server::new(&config.address, config.tls.as_ref())?,
            trust: config.trust_forward_header,
            request_fields: (!request_fields.is_empty()).then_some(request_fields),
            response_fields: names(&config.auth_response_headers)?,
            response_fields_regex: regex.map(|regex| compile_go_regex(&regex)).transpose()?,
            cookies: config.add_auth_cookies_to_response.clone(),
            user_field: user_field.map(|name| field_name(&name)).transpose()?,
            forward_body: config.forward_body,
            body_bytes_max: config.body_bytes_max.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX),
            is_own_limit: config.body_bytes_max.is_none_or(|max| max > BODY_BYTES_MAX),
            answer_bytes_max: config
                .response_body_bytes_max
                .unwrap_or(ANSWER_BYTES_MAX)
                .min(ANSWER_BYTES_MAX),
            keeps_location: config.preserve_location_header,
            keeps_method: config.preserve_request_method,
            sign_in: text(&config.auth_signin_url),
            is_down: AtomicBool::new(false),
        })
    }

    async fn guard(&self, mut request: Request, ctx: &mut Ctx, next: Next<'_>) -> Response {
        let body = match self.take_body(&mut request).await {
            Ok(body) => body,
            Err(error) => return self.refuse_body(error, ctx),
        };
        let method = if self.keeps_method { request.method.clone() } else { Method::GET };
        let headers = self.question_headers(&request, ctx);
        let asked = self.server.ask(method, headers, body, &request.visitor, self.answer_bytes_max).await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(AskError::TooLong) => {
                return refuse(ctx, "forward_auth_answer_too_large", StatusCode::UNAUTHORIZED);
            }
            Err(error) => {
                self.note_failure(&error);
                return refuse(ctx, "forward_auth_failed", StatusCode::INTERNAL_SERVER_ERROR);
            }
        };
        self.note_answer();
        let user = self.user_field.as_ref().and_then(|name| answer.headers.get(name)?.to_str().ok());
        ctx.log.user = user.map(Into::into).or(ctx.log.user.take());
        if !answer.status.is_success() {
            ctx.refused("forward_auth_refused");
            return self.refusal(answer);
        }
        self.admit(&mut request, &answer.headers);
        let mut response = next.run(request, ctx).await;
        self.add_cookies(&mut response.headers, &answer.headers);
        response
    }

    /// One line when the server goes away, not one for each request that is refused meanwhile.
    fn note_failure(&self, error: &AskError) {
        if !self.is_down.swap(true, Ordering::Relaxed) {
            let causes = std::iter::successors(error.source(), |error| (*error).source());
            let causes: Vec<String> = causes.map(ToString::to_string).collect();
            tracing::warn!(server = self.server.authority, %error, cause = causes.join(": "), "nobody passes without the authentication server");
        }
    }

    fn note_answer(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            tracing::info!(server = self.server.authority, "the authentication server answers again");
        }
    }

    /// The content for the server, if it is to see it; the request keeps it.
    async fn take_body(&self, request: &mut Request) -> Result<Body, KeepError> {
        if !self.forward_body || request.body.length() == Length::Raw {
            return Ok(Body::empty());
        }
        if matches!(request.body.length(), Length::Known(bytes) if bytes > self.body_bytes_max) {
            return Err(KeepError::Body(BodyError::TooLarge));
        }
        let body = std::mem::replace(&mut request.body, Body::empty());
        let content = keep_whole(body, self.body_bytes_max).await?;
        request.body = Body::full(content.clone());
        Ok(Body::full(content))
    }

    /// The operator's limit is a refusal of the visitor, as Traefik has it; our own says what it is.
    fn refuse_body(&self, error: KeepError, ctx: &mut Ctx) -> Response {
        let (reason, status) = match error {
            KeepError::NoRoom => ("forward_auth_bodies_full", StatusCode::SERVICE_UNAVAILABLE),
            KeepError::Body(BodyError::TooLarge) if self.is_own_limit => {
                ("forward_auth_body_over_cap", StatusCode::PAYLOAD_TOO_LARGE)
            }
            KeepError::Body(BodyError::TooLarge) => ("forward_auth_body_too_large", StatusCode::UNAUTHORIZED),
            KeepError::Body(_) => ("forward_auth_body_broken", StatusCode::INTERNAL_SERVER_ERROR),
        };
        refuse(ctx, reason, status)
    }

    fn question_headers(&self, request: &Request, ctx: &Ctx) -> HeaderMap {
        let mut headers = HeaderMap::clone(&request.headers);
        remove_hop_by_hop(&mut headers);
        headers.remove(header::TE);
        headers.remove(header::EXPECT);
        if self.trust == Some(false) {
            for name in &CLAIMS {
                headers.remove(name);
            }
        }
        if let Some(names) = &self.request_fields {
            let mut kept = HeaderMap::new();
            for name in names {
                for value in headers.get_all(name) {
                    kept.append(name, value.clone());
                }
            }
            headers = kept;
        }
        let proto = if ctx.secure { "https" } else { "http" };
        let told = [
            (X_FORWARDED_METHOD, request.method.as_str()),
            (X_FORWARDED_PROTO, proto),
            (X_FORWARDED_HOST, request.host.as_str()),
            (X_FORWARDED_URI, go_url::target(&request.uri)),
        ];
        // Set to what is known here, unless the operator trusts what came in.
        for (name, value) in told {
            if self.trust.is_none() || !headers.contains_key(&name) {
                set(&mut headers, name, value);
            }
        }
        let before = super::source::forwarded_for(&headers);
        let client = ctx.client;
        match self.trust.is_some() && !before.is_empty() {
            true => set(&mut headers, X_FORWARDED_FOR, &format!("{before}, {client}")),
            false => set(&mut headers, X_FORWARDED_FOR, &client.to_string()),
        }
        if self.trust.is_some() && !headers.contains_key(&X_FORWARDED_PORT) {
            let port = port(request, &headers);
            set(&mut headers, X_FORWARDED_PORT, &port);
        }
        headers
    }

    /// The server's own answer, for the visitor.
    fn refusal(&self, answer: Answer) -> Response {
        if let (Some(sign_in), StatusCode::UNAUTHORIZED) = (&self.sign_in, answer.status) {
            return sign_in_at(sign_in);
        }
        let Answer { status, mut headers, content } = answer;
        remove_hop_by_hop(&mut headers);
        if !self.keeps_location
            && let Some(told) = headers.get(header::LOCATION).filter(|told| !told.is_empty())
        {
            let Server { scheme, authority, target, .. } = &self.server;
            let resolved = std::str::from_utf8(told.as_bytes())
                .ok()
                .and_then(|told| location::resolve(scheme, authority, go_url::target(target), told));
            match resolved.and_then(|resolved| HeaderValue::try_from(resolved).ok()) {
                Some(resolved) => drop(headers.insert(header::LOCATION, resolved)),
                None => return Response::status(StatusCode::INTERNAL_SERVER_ERROR),
            }
        }
        Response { status, headers: headers.into(), body: Body::full(content) }
    }

    /// Puts what the server says about the visitor in place of what the visitor says. What frames the server's answer says
    /// nothing about the visitor, whatever is listed.
    fn admit(&self, request: &mut Request, answer: &HeaderMap) {
        if !self.response_fields.is_empty() || self.response_fields_regex.is_some() {
            // Where the visitor could say it again.
            request.body.limit_trailers(Vec::new());
        }
        let request = &mut request.headers;
        for name in self.response_fields.iter().filter(|name| !is_of_the_hop(name)) {
            request.remove(name);
            for value in answer.get_all(name) {
                request.append(name, value.clone());
            }
        }
        let Some(regex) = &self.response_fields_regex else { return };
        // Patterns are written against names as Go spells them.
        let fits = |name: &HeaderName| !is_of_the_hop(name) && regex.is_match(&canonical(name.as_str()));
        let claimed: Vec<HeaderName> = request.keys().filter(|name| fits(name)).cloned().collect();
        for name in claimed {
            request.remove(name);
        }
        for (name, value) in answer.iter().filter(|(name, _)| fits(name)) {
            request.append(name, value.clone());
        }
    }

    /// The server's listed cookies in place of the upstream's of the same names.
    fn add_cookies(&self, response: &mut HeaderMap, answer: &HeaderMap) {
        let is_listed = |cookie: &&HeaderValue| {
            let name = cookie.as_bytes().split(|byte| matches!(byte, b'=' | b';')).next().unwrap_or_default();
            self.cookies.iter().any(|listed| listed.as_bytes() == name.trim_ascii())
        };
        if self.cookies.is_empty() || !answer.contains_key(header::SET_COOKIE) {
            return;
        }
        let own = response.get_all(header::SET_COOKIE).iter().filter(|cookie| !is_listed(cookie));
        let added = answer.get_all(header::SET_COOKIE).iter().filter(is_listed);
        let cookies: Vec<HeaderValue> = own.chain(added).cloned().collect();
        response.remove(header::SET_COOKIE);
        for cookie in cookies {
            response.append(header::SET_COOKIE, cookie);
        }
    }
}

impl Around for ForwardAuth {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        Box::pin(self.guard(request, ctx, next))
    }
}

fn refuse(ctx: &mut Ctx, reason: &'static str, status: StatusCode) -> Response {
    ctx.refused(reason);
    Response::status(status)
}

fn sign_in_at(location: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(location) else {
        return Response::status(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::status(StatusCode::FOUND);
    response.headers.insert(header::LOCATION, location);
    response
}

fn port(request: &Request, headers: &HeaderMap) -> String {
    let name_end = request.host.rfind(']').map_or(0, |at| at + 1);
    if let Some((_, port)) = request.host[name_end..].rsplit_once(':').filter(|(_, port)| !port.is_empty()) {
        return port.to_owned();
    }
    let is_secure = matches!(go_url::field(headers, "x-forwarded-proto"), Some("https" | "wss"));
    if is_secure { "443" } else { "80" }.to_owned()
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
        headers.insert(name, value);
    }
}

/// A name as Go spells it: a capital at the beginning and after each hyphen.
fn canonical(name: &str) -> String {
    let mut at_start = true;
    let spell = |c: char| {
        let spelled = if at_start { c.to_ascii_uppercase() } else { c };
        at_start = c == '-';
        spelled
    };
    name.chars().map(spell).collect()
}

/// What a request's body may hold at most, whatever the operator's limit; it is kept until the upstream has it, and counts
/// against [`crate::service::replay::ALL_KEPT_BYTES_MAX`]: whoever sends it is not known yet.
const BODY_BYTES_MAX: u64 = 16 << 20;
/// The same for the server's answer, which is a page at most.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// What hops say about a visitor (`ingress-features.md §3.0`).
const CLAIMS: [HeaderName; 13] = [
    X_FORWARDED_FOR,
    X_FORWARDED_METHOD,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    X_FORWARDED_URI,
    X_FORWARDED_PORT,
    HeaderName::from_static("x-forwarded-scheme"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-tls-client-cert"),
    HeaderName::from_static("x-forwarded-tls-client-cert-info"),
    HeaderName::from_static("x-scheme"),
    HeaderName::from_static("x-real-ip"),
];
