//! `accessLog`, `metrics`, `ping`, `api`: what is seen from outside, in Traefik's words.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{
    AccessLog, AccessLogFields, AccessLogFilters, AccessLogFormat, FieldMode, Metrics, Prometheus,
    entry_points::duration,
    read::{Field, Section},
    yaml::Value,
};

pub(crate) fn read_access_log(field: &Field<'_>) -> Option<AccessLog> {
    let mut section = field.section()?;
    let log = AccessLog {
        file_path: section.optional("filePath", Field::path),
        format: section.optional("format", read_access_log_format).unwrap_or_default(),
        buffered_lines_max: section
            .optional("bufferingSize", |field| field.integer(0..=BUFFERED_LINES_MAX))
            .unwrap_or_default(),
        filters: section.optional("filters", read_filters).unwrap_or_default(),
        fields: section.optional("fields", read_fields).unwrap_or_default(),
        add_internals: section.optional("addInternals", Field::boolean).unwrap_or_default(),
    };
    section.refuse(&["otlp", "dualOutput"]);
    section.finish();
    Some(log)
}

fn read_access_log_format(field: &Field<'_>) -> Option<AccessLogFormat> {
    field.parse("`common`, `genericCLF`, `json` or `text`", |text| match text {
        "common" => Some(AccessLogFormat::Common),
        "genericCLF" => Some(AccessLogFormat::GenericClf),
        "json" => Some(AccessLogFormat::Json),
        "text" => Some(AccessLogFormat::Text),
        _ => None,
    })
}

fn read_filters(field: &Field<'_>) -> Option<AccessLogFilters> {
    let mut section = field.section()?;
    let mut filters = AccessLogFilters::default();
    section.set("statusCodes", &mut filters.status_codes, |field| {
        let read = |(text, item): (&str, Field<'_>)| {
            let range = status_range(text);
            if range.is_none() {
                item.reject("expected a status code or a range such as `500-599`");
            }
            range
        };
        Some(field.texts().into_iter().filter_map(read).collect())
    });
    section.set("retryAttempts", &mut filters.retry_attempts, Field::boolean);
    section.set("minDuration", &mut filters.duration_min, duration);
    section.finish();
    Some(filters)
}

fn status_range(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let range: (u16, u16) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
    (range.0 <= range.1).then_some(range)
}

fn read_fields(field: &Field<'_>) -> Option<AccessLogFields> {
    let mut section = field.section()?;
    let mut fields = AccessLogFields::default();
    section.set("defaultMode", &mut fields.default_mode, |field| read_mode(field, false));
    section.set("names", &mut fields.names, read_names);
    if let Some(mut headers) = section.take("headers").and_then(|field| field.section()) {
        headers.set("defaultMode", &mut fields.headers_default_mode, |field| read_mode(field, true));
        headers.set("names", &mut fields.headers, |field| field.objects(|field| read_mode(field, true)));
        headers.finish();
    }
    if let Some(mut query) = section.take("queryParameters").and_then(|field| field.section()) {
        query.set("defaultMode", &mut fields.query_parameters, |field| read_mode(field, false));
        query.finish();
    }
    section.finish();
    Some(fields)
}

/// Modes by name of a field; a name that no line ever has would leave in what it was meant to keep out.
fn read_names(field: &Field<'_>) -> Option<BTreeMap<String, FieldMode>> {
    for (name, field) in field.named() {
        if FIELDS.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            continue;
        }
        let expected = "there is no such field of the access log";
        match crate::read::nearest(name, &FIELDS) {
            Some(near) => field.reject_with(expected, format!("did you mean `{near}`?")),
            None => field.reject(expected),
        }
    }
    field.objects(|field| read_mode(field, false))
}

fn read_mode(field: &Field<'_>, may_redact: bool) -> Option<FieldMode> {
    let expected = if may_redact { "`keep`, `drop` or `redact`" } else { "`keep` or `drop`" };
    field.parse(expected, |text| match text {
        "keep" => Some(FieldMode::Keep),
        "drop" => Some(FieldMode::Drop),
        "redact" if may_redact => Some(FieldMode::Redact),
        _ => None,
    })
}

pub(crate) fn read_metrics(field: &Field<'_>) -> Option<Metrics> {
    let mut section = field.section()?;
    let metrics = Metrics {
        prometheus: section
            .optional("prometheus", |field| optional_block(field, Prometheus::default(), read_prometheus)),
        add_internals: section.optional("addInternals", Field::boolean).unwrap_or_default(),
    };
    section.refuse(&["datadog", "statsD", "influxDB2", "otlp"]);
    section.finish();
    Some(metrics)
}

fn read_prometheus(section: &mut Section<'_>, prometheus: &mut Prometheus) {
    check_entry_point(section);
    if let Some(field) = section.take("manualRouting")
        && field.boolean() == Some(true)
    {
        field.reject("only the admin endpoint serves metrics: expected `false`");
    }
    // What visitors write would become label values without bound.
    section.refuse(&["headerLabels"]);
    section.set("addEntryPointsLabels", &mut prometheus.entry_points_labels, Field::boolean);
    section.set("addRoutersLabels", &mut prometheus.routers_labels, Field::boolean);
    section.set("addServicesLabels", &mut prometheus.services_labels, Field::boolean);
    section.set("buckets", &mut prometheus.buckets, read_buckets);
}

/// Seconds, as in Traefik.
fn read_buckets(field: &Field<'_>) -> Option<Vec<Duration>> {
    let read = |item: &Field<'_>| {
        item.parse("a number of seconds such as `0.3`", |text| {
            let seconds =
                text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0)?;
            Some(Duration::from_secs_f64(seconds))
        })
    };
    let items = field.items();
    let buckets: Vec<Duration> = items.iter().filter_map(read).collect();
    if buckets.is_empty() || buckets.len() > BUCKETS_MAX || !buckets.is_sorted_by(|a, b| a < b) {
        field.reject("expected 1 to 64 numbers of seconds, ascending");
        return None;
    }
    Some(buckets)
}

/// `/ping` of the admin endpoint is always there, `ping@internal` if this section is.
pub(crate) fn check_ping(field: &Field<'_>) -> Option<()> {
    optional_block(field, (), |section, ()| {
        check_entry_point(section);
        section.refuse(&["terminatingStatusCode"]);
        // Routing by hand, with `ping@internal`, is the only way there is.
        section.optional("manualRouting", Field::boolean);
    })
}

/// `/api/...` of the admin endpoint is always there, `api@internal` if this section is.
pub(crate) fn check_api(field: &Field<'_>) -> Option<()> {
    optional_block(field, (), |section, ()| {
        section.refuse(&["basePath"]);
        for key in ["insecure", "dashboard", "debug", "disableDashboardAd", "dashboardName"] {
            if let Some(field) = section.take(key) {
                field.warn("has no effect: the admin endpoint has `/api` and a page, entry points where a router names `api@internal`");
            }
        }
    })
}

/// Traefik's internal entry point stands for our admin endpoint; none else has what is asked of it.
fn check_entry_point(section: &mut Section<'_>) {
    section.optional("entryPoint", |field| {
        field.parse("`traefik`, which stands for the admin endpoint", |name| {
            (name == INTERNAL_ENTRY_POINT).then_some(())
        })
    });
}

/// A block that may be empty, `true` or `false`.
fn optional_block<T>(
    field: &Field<'_>,
    mut value: T,
    read: impl FnOnce(&mut Section<'_>, &mut T),
) -> Option<T> {
    match &field.node.value {
        Value::Mapping(_) => {
            let mut section = field.section()?;
            read(&mut section, &mut value);
            section.finish();
            Some(value)
        }
        _ => field.boolean()?.then_some(value),
    }
}

/// Lines of about 1 KiB: at most 10 MiB wait for the disk.
const BUFFERED_LINES_MAX: u64 = 10_000;
/// Each bucket is a time series per label set.
const BUCKETS_MAX: usize = 64;
/// Name of Traefik's own entry point on port 8080.
const INTERNAL_ENTRY_POINT: &str = "traefik";

/// Fields of a line: Traefik's (`ingress-features.md §7.2`), and `RequestId` and `reason` of our own. The two ids of a trace
/// are never there, because nothing is traced, but a file that drops them is not wrong.
const FIELDS: [&str; 36] = [
    "StartUTC",
    "StartLocal",
    "Duration",
    "RouterName",
    "ServiceName",
    "ServiceURL",
    "ServiceAddr",
    "ClientAddr",
    "ClientHost",
    "ClientPort",
    "ClientUsername",
    "RequestAddr",
    "RequestHost",
    "RequestPort",
    "RequestMethod",
    "RequestPath",
    "RequestProtocol",
    "RequestScheme",
    "RequestContentSize",
    "OriginDuration",
    "OriginContentSize",
    "OriginStatus",
    "DownstreamStatus",
    "DownstreamContentSize",
    "RequestCount",
    "GzipRatio",
    "Overhead",
    "RetryAttempts",
    "TLSVersion",
    "TLSCipher",
    "TLSClientSubject",
    "entryPointName",
    "RequestId",
    "reason",
    "TraceId",
    "SpanId",
];
