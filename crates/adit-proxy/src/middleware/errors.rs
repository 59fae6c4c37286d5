//! errors: pages of another service in place of answers with listed statuses.

use std::sync::Arc;

use adit_config::dynamic;
use http::header::HeaderName;
use http::{HeaderMap, Method, StatusCode, Uri, Version};

use super::headers::field_name;
use super::status_ranges::StatusRanges;
use super::{Around, BoxFuture, Ctx, Next, Target, go_url, reply};
use crate::body::Body;
use crate::message::{Request, Response};

/// `errors`.
pub(super) struct Errors {
    statuses: StatusRanges,
    rewrites: Vec<(StatusRanges, StatusCode)>,
    query: String,
    /// Only these fields of the request reach the pages' service; none for all.
    fields: Option<Vec<HeaderName>>,
    pages: Arc<dyn Target>,
}

impl Errors {
    /// What can be wrong about the configuration itself; the pages' service is looked up for each router.
    pub(super) fn check(config: &dynamic::Errors) -> Result<(), String> {
        parse(config).map(drop)
    }

    pub(super) fn new(config: &dynamic::Errors, pages: Arc<dyn Target>) -> Result<Self, String> {
        let (statuses, rewrites, fields) = parse(config)?;
        Ok(Self { statuses, rewrites, query: config.query.clone(), fields, pages })
    }

    fn page_request(
        &self,
        asked: &Asked,
        original: StatusCode,
        status: StatusCode,
    ) -> Result<Request, String> {
        let target = if self.query.is_empty() {
            "/".to_owned()
        } else {
            format!("/{}", self.query.strip_prefix('/').unwrap_or(&self.query))
                .replace("{status}", status.as_str())
                .replace("{originalStatus}", original.as_str())
                .replace("{url}", &go_url::query_escape(&asked.url))
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let separator = if query.is_empty() { "" } else { "?" };
        let target = format!("{}{separator}{query}", go_url::escaped(path)?);
        let headers = match &self.fields {
            None => asked.request.headers.clone(),
            Some(names) => {
                let mut headers = HeaderMap::new();
                for name in names {
                    for value in asked.request.headers.get_all(name) {
                        headers.append(name, value.clone());
                    }
                }
                headers.into()
            }
        };
        Ok(Request {
            method: Method::GET,
            uri: target.parse::<Uri>().map_err(|error| error.to_string())?,
            version: Version::HTTP_11,
            host: asked.request.host.clone(),
            headers,
            body: Body::empty(),
            upgrade: None,
            visitor: Arc::clone(&asked.request.visitor),
        })
    }

    async fn page(&self, asked: Asked, original: StatusCode, ctx: &Ctx) -> Response {
        let rewrite = self.rewrites.iter().find(|(from, _)| from.contains(original));
        let status = rewrite.map_or(original, |(_, to)| *to);
        let request = match self.page_request(&asked, original, status) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(router = %ctx.router, error, "the error page's query makes no URL");
                return reply::error(status, reply::text(status));
            }
        };
        // The log is to say who failed, not who had the page.
        let mut ctx = Ctx { path_is_empty: false, ..ctx.clone() };
        let page = self.pages.call(request, &mut ctx).await;
        Response { status, ..page }
    }
}

impl Around for Errors {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        let scheme = if ctx.secure { "https" } else { "http" };
        let asked = Asked {
            url: format!("{scheme}://{}{}", request.host, go_url::target(&request.uri)),
            request: super::retry::copy(&request, Body::empty()),
        };
        Box::pin(async move {
            let response = next.run(request, ctx).await;
            if !self.statuses.contains(response.status) {
                return response;
            }
            let status = response.status;
            drop(response);
            self.page(asked, status, ctx).await
        })
    }
}

/// The request as it came here, without its content.
struct Asked {
    url: String,
    request: Request,
}

type Parsed = (StatusRanges, Vec<(StatusRanges, StatusCode)>, Option<Vec<HeaderName>>);

fn parse(config: &dynamic::Errors) -> Result<Parsed, String> {
    let mut rewrites = Vec::new();
    for (from, to) in &config.status_rewrites {
        let to = StatusCode::from_u16(*to).map_err(|_| format!("statusRewrites: {to} is not a status"))?;
        rewrites.push((StatusRanges::parse([from])?, to));
    }
    let fields = config
        .error_request_headers
        .as_ref()
        .map(|names| names.iter().map(|name| field_name(name)).collect::<Result<_, _>>());
    Ok((StatusRanges::parse(&config.status)?, rewrites, fields.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Echo, content, ctx, request_with};
    use super::super::{Layer, Outcome, run};
    use super::*;

    fn config() -> dynamic::Errors {
        dynamic::Errors {
            status: vec!["500-599".to_owned(), "418".to_owned()],
            status_rewrites: [("418".to_owned(), 404)].into(),
            service: "pages".to_owned(),
            query: "/{status}/{originalStatus}?at={url}".to_owned(),
            error_request_headers: Some(vec!["Accept".to_owned()]),
        }
    }

    async fn asked(target: &Echo, pages: &Arc<Echo>) -> (Response, Ctx) {
        let pages: Arc<dyn Target> = Arc::clone(pages) as _;
        let chain = [Layer::around("m", Errors::new(&config(), pages).unwrap())];
        let mut ctx = ctx();
        let request = request_with("/a?b=c", &[("accept", "text/html"), ("cookie", "a=1")]);
        let response = run(&chain, target, request, &mut ctx).await;
        (response, ctx)
    }

    #[tokio::test]
    async fn a_listed_status_gets_a_page_and_keeps_its_number() {
        let pages = Arc::new(Echo::text("page"));
        let (response, ctx) = asked(&Echo::failing(&[(502, Outcome::Unsent)]), &pages).await;
        assert_eq!((response.status.as_u16(), ctx.outcome), (502, Outcome::Unsent));
        assert_eq!(content(response.body).await, b"page");
        let seen = pages.seen();
        assert_eq!(seen.method, Method::GET);
        assert_eq!(go_url::target(&seen.uri), "/502/502?at=http%3A%2F%2Fexample.com%2Fa%3Fb%3Dc");
        assert_eq!(seen.headers.len(), 1);
    }

    #[tokio::test]
    async fn a_status_can_be_rewritten_and_others_pass() {
        let pages = Arc::new(Echo::text("page"));
        let (response, _) = asked(&Echo::failing(&[(418, Outcome::Answered)]), &pages).await;
        assert_eq!(response.status.as_u16(), 404);
        assert!(pages.seen().uri.path().starts_with("/404/418"));
        let (response, _) = asked(&Echo::failing(&[(404, Outcome::Answered)]), &pages).await;
        assert_eq!(content(response.body).await, b"answer 1");
    }
}
