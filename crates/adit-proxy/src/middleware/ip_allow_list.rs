//! ipAllowList (and ipWhiteList): only some addresses pass.

use std::ops::ControlFlow;

use adit_config::dynamic;
use http::StatusCode;

use super::source::{self, Networks, Strategy};
use super::{Ctx, Edit, reply};
use crate::message::{Request, Response};

/// `ipAllowList`.
pub(super) struct IpAllowList {
    allowed: Networks,
    strategy: Strategy,
    refusal: StatusCode,
}

impl IpAllowList {
    pub(super) fn new(config: &dynamic::IpAllowList) -> Result<Self, String> {
        if config.source_range.is_empty() {
            return Err("sourceRange is empty".to_owned());
        }
        Ok(Self {
            allowed: Networks::parse(&config.source_range)?,
            strategy: Strategy::new(config.ip_strategy.as_ref())?,
            refusal: match config.reject_status_code {
                None | Some(0) => StatusCode::FORBIDDEN,
                Some(code) => reply::status(code)?,
            },
        })
    }
}

impl Edit for IpAllowList {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let address = self.strategy.address(&request.headers, ctx);
        if self.allowed.contains(source::without_port(&address)) {
            return ControlFlow::Continue(());
        }
        ctx.refused("ip_not_allowed");
        ControlFlow::Break(reply::status_text(self.refusal))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, request, request_with};
    use super::*;

    fn list(range: &str, depth: i64) -> IpAllowList {
        let config = dynamic::IpAllowList {
            source_range: vec![range.to_owned()],
            ip_strategy: Some(dynamic::IpStrategy { depth, ..Default::default() }),
            reject_status_code: Some(404),
        };
        IpAllowList::new(&config).unwrap()
    }

    #[test]
    fn the_client_or_the_entry_at_the_depth_must_be_listed() {
        assert!(list("127.0.0.0/8", 0).edit(&mut request("/"), &mut ctx()).is_continue());
        let mut forwarded = request_with("/", &[("x-forwarded-for", "10.0.0.1, 1.1.1.1")]);
        assert!(list("10.0.0.0/8", 2).edit(&mut forwarded, &mut ctx()).is_continue());
        assert!(list("0.0.0.0/0", 3).edit(&mut forwarded, &mut ctx()).is_break());
    }

    #[test]
    fn a_refusal_has_its_status_and_a_name() {
        let mut ctx = ctx();
        let ControlFlow::Break(response) = list("10.0.0.0/8", 0).edit(&mut request("/"), &mut ctx) else {
            panic!("let through");
        };
        assert_eq!(response.status, StatusCode::NOT_FOUND);
        assert_eq!(ctx.log.refusal, Some("ip_not_allowed"));
        assert!(IpAllowList::new(&dynamic::IpAllowList::default()).is_err());
    }
}
