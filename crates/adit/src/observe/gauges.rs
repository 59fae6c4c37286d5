//! Gauges that are read off the running ingress when someone asks, and cost nothing before.

use std::sync::{Arc, Weak};

use adit_proxy::tls::CertificateStore;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use x509_parser::prelude::FromDer as _;

use crate::gateway::Gateway;

/// Registers `adit_ingress_disabled` and, where Traefik's names are wanted, its gauges.
///
/// # Errors
/// If the registry has them already.
pub(crate) fn register(
    registry: &Registry,
    gateway: &Arc<Gateway>,
    store: &Arc<CertificateStore>,
) -> prometheus::Result<()> {
    let about = "Objects of the ingress that are disabled because of what is wrong with them, by kind";
    let gauge = IntGaugeVec::new(Opts::new("adit_ingress_disabled", about), &["kind"])?;
    registry.register(Box::new(Disabled { gateway: Arc::downgrade(gateway), gauge }))?;
    let Some(traefik) = gateway.traefik() else { return Ok(()) };
    if traefik.has_services() {
        let about = "Whether a server of a service is used (1) or not (0)";
        let gauge = IntGaugeVec::new(Opts::new("traefik_service_server_up", about), &["service", "url"])?;
        registry.register(Box::new(Servers { gateway: Arc::downgrade(gateway), gauge }))?;
    }
    let about = "End of a certificate's validity in seconds since 1970";
    let gauge = GaugeVec::new(Opts::new("traefik_tls_certs_not_after", about), &["cn", "serial", "sans"])?;
    registry.register(Box::new(Certificates { store: Arc::downgrade(store), gauge }))
}

struct Disabled {
    gateway: Weak<Gateway>,
    gauge: IntGaugeVec,
}

impl Collector for Disabled {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(gateway) = self.gateway.upgrade() {
            let generation = gateway.load();
            let verdicts = &generation.verdicts;
            let routers = verdicts.routers.len() + verdicts.tcp_routers.len() + verdicts.udp_routers.len();
            let counts = [
                ("routers", routers),
                ("services", verdicts.services.len()),
                ("middlewares", verdicts.middlewares.len()),
                ("files", verdicts.faults.len()),
            ];
            for (kind, count) in counts {
                self.gauge.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        self.gauge.collect()
    }
}

struct Servers {
    gateway: Weak<Gateway>,
    gauge: IntGaugeVec,
}

impl Collector for Servers {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.reset();
        if let Some(gateway) = self.gateway.upgrade() {
            for (service, servers) in gateway.load().servers() {
                for (url, up) in servers {
                    self.gauge.with_label_values(&[&service, &url]).set(i64::from(up));
                }
            }
        }
        self.gauge.collect()
    }
}

struct Certificates {
    store: Weak<CertificateStore>,
    gauge: GaugeVec,
}

impl Collector for Certificates {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.reset();
        if let Some(store) = self.store.upgrade() {
            for certificate in store.load().loaded() {
                let leaf = certificate.certified_key().end_entity_cert().ok();
                let (name, serial) = leaf.map(|leaf| identity(leaf)).unwrap_or_default();
                let sans = certificate.names().join(",");
                #[expect(clippy::cast_precision_loss, reason = "seconds fit until the year 285 million")]
                self.gauge.with_label_values(&[&name, &serial, &sans]).set(certificate.not_after() as f64);
            }
        }
        self.gauge.collect()
    }
}

/// Common name and decimal serial number.
fn identity(der: &[u8]) -> (String, String) {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(der) else {
        return Default::default();
    };
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    (name.unwrap_or_default().to_owned(), parsed.tbs_certificate.serial.to_string())
}
