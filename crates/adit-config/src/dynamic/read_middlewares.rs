//! `http.middlewares`: which kind it is, and the options of all but `headers` and the ones that ask who somebody is.

use super::{
    AddPrefix, Buffering, Chain, CircuitBreaker, Compress, ContentType, EncodedCharacters, Errors, GrpcWeb,
    InFlightReq, IpAllowList, IpStrategy, Middleware, PassTlsClientCert, RateLimit, RedirectRegex,
    RedirectScheme, ReplacePath, ReplacePathRegex, Retry, SourceCriterion, StripPrefix, StripPrefixRegex,
    TlsClientCertFields, TlsClientCertNames,
    forms::Block,
    read_auth::{read_basic_auth, read_digest_auth, read_forward_auth},
    read_headers::read_headers,
};
use crate::read::{Field, Section};

pub(super) fn read_middleware(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.element()?;
    let read = |(key, read): &(&'static str, Reader)| section.optional(key, read);
    let mut kinds: Vec<Middleware> = KINDS.iter().filter_map(read).collect();
    if let Some(field) = section.take("plugin") {
        field.fault("plugins are not supported");
    }
    section.finish();
    Some(match (field.sink.take_fault(), kinds.pop()) {
        (Some(fault), _) => Middleware::Invalid(fault),
        (None, Some(kind)) if kinds.is_empty() => kind,
        (None, Some(_)) => Middleware::Invalid("one middleware cannot be of several kinds".to_owned()),
        (None, None) => Middleware::Invalid("the middleware is of no kind".to_owned()),
    })
}

type Reader = fn(&Field<'_>) -> Option<Middleware>;

const KINDS: [(&str, Reader); 25] = [
    ("addPrefix", read_add_prefix),
    ("basicAuth", |field| read_basic_auth(field).map(Middleware::BasicAuth)),
    ("buffering", read_buffering),
    ("chain", read_chain),
    ("circuitBreaker", read_circuit_breaker),
    ("compress", read_compress),
    ("contentType", read_content_type),
    ("digestAuth", |field| read_digest_auth(field).map(Middleware::DigestAuth)),
    ("encodedCharacters", |field| {
        read_encoded_characters(field, EncodedCharacters::default()).map(Middleware::EncodedCharacters)
    }),
    ("errors", read_errors),
    ("forwardAuth", |field| read_forward_auth(field).map(Box::new).map(Middleware::ForwardAuth)),
    ("grpcWeb", read_grpc_web),
    ("headers", |field| read_headers(field).map(Box::new).map(Middleware::Headers)),
    ("inFlightReq", read_in_flight_req),
    ("ipAllowList", read_ip_allow_list),
    ("ipWhiteList", read_ip_allow_list),
    ("passTLSClientCert", read_pass_tls_client_cert),
    ("rateLimit", read_rate_limit),
    ("redirectRegex", read_redirect_regex),
    ("redirectScheme", read_redirect_scheme),
    ("replacePath", read_replace_path),
    ("replacePathRegex", read_replace_path_regex),
    ("retry", read_retry),
    ("stripPrefix", read_strip_prefix),
    ("stripPrefixRegex", read_strip_prefix_regex),
];

fn read_add_prefix(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let prefix = section.optional("prefix", Field::string).unwrap_or_default();
    section.finish();
    Some(Middleware::AddPrefix(AddPrefix { prefix }))
}

fn read_buffering(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut buffering = Buffering::default();
    let bytes = |field: &Field<'_>| {
        let bytes = field.bytes_max()?;
        if bytes.is_none() {
            // Not "no limit" as elsewhere: Traefik refuses the middleware, and a limit mistyped must not be none.
            field.fault("expected 0 (no limit) or more bytes");
        }
        bytes
    };
    let memory = |field: &Field<'_>| bytes(field).filter(|bytes| *bytes > 0);
    section.set("maxRequestBodyBytes", &mut buffering.request_body_bytes_max, bytes);
    section.set("memRequestBodyBytes", &mut buffering.request_memory_bytes_max, memory);
    section.set("maxResponseBodyBytes", &mut buffering.response_body_bytes_max, bytes);
    section.set("memResponseBodyBytes", &mut buffering.response_memory_bytes_max, memory);
    buffering.retry_expression = section.optional("retryExpression", Field::filled);
    section.finish();
    Some(Middleware::Buffering(buffering))
}

fn read_chain(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let middlewares = section.optional("middlewares", Field::strings).unwrap_or_default();
    section.finish();
    Some(Middleware::Chain(Chain { middlewares }))
}

fn read_circuit_breaker(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut breaker = CircuitBreaker::default();
    section.set("expression", &mut breaker.expression, Field::string);
    let default = breaker.check_period;
    section.set("checkPeriod", &mut breaker.check_period, |field| field.period(default));
    section.set("fallbackDuration", &mut breaker.fallback_duration, Field::go_duration_or_zero);
    section.set("recoveryDuration", &mut breaker.recovery_duration, Field::go_duration_or_zero);
    section.set("responseCode", &mut breaker.response_code, read_status);
    section.finish();
    Some(Middleware::CircuitBreaker(breaker))
}

/// A status that an answer can have; another number is the object's fault.
fn read_status(field: &Field<'_>) -> Option<u16> {
    let status = field.whole()?;
    let status = u16::try_from(status).ok().filter(|status| (100..=999).contains(status));
    if status.is_none() {
        field.fault("expected a status code");
    }
    status
}

fn read_compress(field: &Field<'_>) -> Option<Middleware> {
    let mut compress = Compress::default();
    let mut section = match field.open_block() {
        Block::Off => return None,
        Block::Defaults => return Some(Middleware::Compress(compress)),
        Block::Section(section) => section,
    };
    section.set("excludedContentTypes", &mut compress.excluded_content_types, Field::strings);
    section.set("includedContentTypes", &mut compress.included_content_types, Field::strings);
    section.set("minResponseBodyBytes", &mut compress.response_body_bytes_min, |field| {
        field.bytes_max().map(Option::unwrap_or_default).filter(|bytes| *bytes > 0)
    });
    // An empty list counts as none at all.
    section.set("encodings", &mut compress.encodings, |field| field.strings().filter(|l| !l.is_empty()));
    compress.default_encoding = section.optional("defaultEncoding", Field::filled);
    section.finish();
    Some(Middleware::Compress(compress))
}

fn read_content_type(field: &Field<'_>) -> Option<Middleware> {
    let mut content_type = ContentType::default();
    match field.open_block() {
        Block::Off => return None,
        Block::Defaults => {}
        Block::Section(mut section) => {
            content_type.auto_detect = section.optional("autoDetect", |field| {
                field.warn("deprecated: the middleware alone says that content types are detected");
                field.truth()
            });
            section.finish();
        }
    }
    Some(Middleware::ContentType(content_type))
}

/// Of a middleware or an entry point, which differ in their defaults.
pub(crate) fn read_encoded_characters(
    field: &Field<'_>,
    default: EncodedCharacters,
) -> Option<EncodedCharacters> {
    let mut section = field.block()?;
    let mut allowed = default;
    section.set("allowEncodedSlash", &mut allowed.allow_slash, Field::truth);
    section.set("allowEncodedBackSlash", &mut allowed.allow_back_slash, Field::truth);
    section.set("allowEncodedNullCharacter", &mut allowed.allow_null, Field::truth);
    section.set("allowEncodedSemicolon", &mut allowed.allow_semicolon, Field::truth);
    section.set("allowEncodedPercent", &mut allowed.allow_percent, Field::truth);
    section.set("allowEncodedQuestionMark", &mut allowed.allow_question_mark, Field::truth);
    section.set("allowEncodedHash", &mut allowed.allow_hash, Field::truth);
    section.finish();
    Some(allowed)
}

fn read_errors(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut errors = Errors::default();
    section.set("status", &mut errors.status, Field::strings);
    section.set("statusRewrites", &mut errors.status_rewrites, |field| field.objects(read_status));
    section.set("service", &mut errors.service, Field::string);
    section.set("query", &mut errors.query, Field::string);
    errors.error_request_headers =
        section.optional("errorRequestHeaders", Field::strings).filter(|names| !names.is_empty());
    section.finish();
    Some(Middleware::Errors(errors))
}

fn read_grpc_web(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let allow_origins = section.optional("allowOrigins", Field::strings).unwrap_or_default();
    section.finish();
    Some(Middleware::GrpcWeb(GrpcWeb { allow_origins }))
}

fn read_in_flight_req(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut limit = InFlightReq::default();
    section.set("amount", &mut limit.amount, Field::whole);
    limit.source_criterion = section.optional("sourceCriterion", read_source_criterion);
    section.finish();
    Some(Middleware::InFlightReq(limit))
}

fn read_source_criterion(field: &Field<'_>) -> Option<SourceCriterion> {
    let mut section = field.block()?;
    let mut criterion = SourceCriterion {
        ip_strategy: section.optional("ipStrategy", read_ip_strategy),
        request_header_name: section.optional("requestHeaderName", Field::filled),
        request_host: false,
    };
    section.set("requestHost", &mut criterion.request_host, Field::truth);
    section.finish();
    Some(criterion)
}

fn read_ip_strategy(field: &Field<'_>) -> Option<IpStrategy> {
    let mut strategy = IpStrategy::default();
    let mut section = match field.open_block() {
        Block::Off => return None,
        Block::Defaults => return Some(strategy),
        Block::Section(section) => section,
    };
    section.set("depth", &mut strategy.depth, Field::whole);
    section.set("excludedIPs", &mut strategy.excluded_ips, Field::strings);
    strategy.ipv6_subnet = section.optional("ipv6Subnet", Field::whole);
    section.finish();
    Some(strategy)
}

fn read_ip_allow_list(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let list = IpAllowList {
        source_range: section.optional("sourceRange", Field::strings).unwrap_or_default(),
        ip_strategy: section.optional("ipStrategy", read_ip_strategy),
        reject_status_code: section.optional("rejectStatusCode", |field| match field.scalar() {
            // Go's zero value: not given.
            Some("0") => None,
            _ => read_status(field),
        }),
    };
    section.finish();
    Some(Middleware::IpAllowList(list))
}

fn read_pass_tls_client_cert(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut pass = PassTlsClientCert::default();
    section.set("pem", &mut pass.pem, Field::truth);
    pass.info = section.optional("info", |field| {
        let mut section = field.block()?;
        let mut fields = TlsClientCertFields::default();
        section.set("notAfter", &mut fields.not_after, Field::truth);
        section.set("notBefore", &mut fields.not_before, Field::truth);
        section.set("sans", &mut fields.sans, Field::truth);
        section.set("serialNumber", &mut fields.serial_number, Field::truth);
        fields.subject = section.optional("subject", |field| Some(read_names(field.block()?, true)));
        fields.issuer = section.optional("issuer", |field| Some(read_names(field.block()?, false)));
        section.finish();
        Some(fields)
    });
    section.finish();
    Some(Middleware::PassTlsClientCert(pass))
}

fn read_names(mut section: Section<'_>, is_subject: bool) -> TlsClientCertNames {
    let mut names = TlsClientCertNames::default();
    section.set("country", &mut names.country, Field::truth);
    section.set("province", &mut names.province, Field::truth);
    section.set("locality", &mut names.locality, Field::truth);
    section.set("organization", &mut names.organization, Field::truth);
    if is_subject {
        section.set("organizationalUnit", &mut names.organizational_unit, Field::truth);
    }
    section.set("commonName", &mut names.common_name, Field::truth);
    section.set("serialNumber", &mut names.serial_number, Field::truth);
    section.set("domainComponent", &mut names.domain_component, Field::truth);
    section.finish();
    names
}

fn read_rate_limit(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut limit = RateLimit::default();
    section.set("average", &mut limit.average, Field::whole);
    section.set("period", &mut limit.period, Field::go_duration);
    section.set("burst", &mut limit.burst, Field::whole);
    limit.source_criterion = section.optional("sourceCriterion", read_source_criterion);
    if let Some(field) = section.take("redis") {
        field.fault("limits shared through Redis are not supported");
    }
    section.finish();
    Some(Middleware::RateLimit(limit))
}

fn read_redirect_regex(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut redirect = RedirectRegex::default();
    section.set("regex", &mut redirect.regex, Field::string);
    section.set("replacement", &mut redirect.replacement, Field::string);
    section.set("permanent", &mut redirect.permanent, Field::truth);
    section.finish();
    Some(Middleware::RedirectRegex(redirect))
}

fn read_redirect_scheme(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut redirect = RedirectScheme::default();
    section.set("scheme", &mut redirect.scheme, Field::string);
    redirect.port = section.optional("port", Field::filled);
    section.set("permanent", &mut redirect.permanent, Field::truth);
    section.finish();
    Some(Middleware::RedirectScheme(redirect))
}

fn read_replace_path(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let path = section.optional("path", Field::string).unwrap_or_default();
    section.finish();
    Some(Middleware::ReplacePath(ReplacePath { path }))
}

fn read_replace_path_regex(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut replace = ReplacePathRegex::default();
    section.set("regex", &mut replace.regex, Field::string);
    section.set("replacement", &mut replace.replacement, Field::string);
    section.finish();
    Some(Middleware::ReplacePathRegex(replace))
}

fn read_retry(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut retry = Retry::default();
    section.set("attempts", &mut retry.attempts, Field::whole);
    section.set("timeout", &mut retry.timeout, Field::go_duration_or_zero);
    section.set("initialInterval", &mut retry.initial_interval, Field::go_duration_or_zero);
    section.set("maxRequestBodyBytes", &mut retry.request_body_bytes_max, Field::bytes_max);
    section.set("status", &mut retry.status, Field::strings);
    section.set("disableRetryOnNetworkError", &mut retry.disable_retry_on_network_error, Field::truth);
    section.set("retryNonIdempotentMethod", &mut retry.retry_non_idempotent_method, Field::truth);
    section.finish();
    Some(Middleware::Retry(retry))
}

fn read_strip_prefix(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let mut strip = StripPrefix::default();
    section.set("prefixes", &mut strip.prefixes, Field::strings);
    section.set("forceSlash", &mut strip.force_slash, |field| {
        field.warn("deprecated");
        field.truth()
    });
    section.finish();
    Some(Middleware::StripPrefix(strip))
}

fn read_strip_prefix_regex(field: &Field<'_>) -> Option<Middleware> {
    let mut section = field.block()?;
    let regex = section.optional("regex", Field::strings).unwrap_or_default();
    section.finish();
    Some(Middleware::StripPrefixRegex(StripPrefixRegex { regex }))
}
