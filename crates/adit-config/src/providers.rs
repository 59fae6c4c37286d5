//! `providers`: where dynamic configuration comes from beside `adit.yaml`.

use crate::{DynamicFiles, FileProvider, Providers, entry_points::duration, read::Field};

pub(crate) fn read_providers(field: &Field<'_>) -> Option<Providers> {
    let mut section = field.section()?;
    let mut providers = Providers { file: section.optional("file", read_file), ..Providers::default() };
    section.set("providersThrottleDuration", &mut providers.throttle, duration);
    section.refuse(&OTHERS);
    section.finish();
    Some(providers)
}

fn read_file(field: &Field<'_>) -> Option<FileProvider> {
    let mut section = field.section()?;
    let file = section.optional("filename", Field::path);
    let directory = section.optional("directory", Field::path);
    let watch = section.optional("watch", Field::boolean).unwrap_or(true);
    if let Some(field) = section.take("debugLogGeneratedTemplate") {
        field.warn("has no effect: dynamic files are not templates");
    }
    section.finish();
    let files = match (file, directory) {
        (Some(file), None) => DynamicFiles::File(file),
        (None, Some(directory)) => DynamicFiles::Directory(directory),
        (None, None) => {
            field.reject("expected `filename` or `directory`");
            return None;
        }
        (Some(_), Some(_)) => {
            field.reject("expected either `filename` or `directory`, not both");
            return None;
        }
    };
    Some(FileProvider { files, watch })
}

/// Traefik's other providers.
const OTHERS: [&str; 17] = [
    "consul",
    "consulCatalog",
    "docker",
    "ecs",
    "etcd",
    "http",
    "knative",
    "kubernetesCRD",
    "kubernetesGateway",
    "kubernetesIngress",
    "kubernetesIngressNGINX",
    "nomad",
    "plugin",
    "redis",
    "rest",
    "swarm",
    "zooKeeper",
];
