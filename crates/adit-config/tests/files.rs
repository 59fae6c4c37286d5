//! Every file in `good` is accepted; every file in `bad` is refused with exactly the problems beside it.
//!
//! `ADIT_BLESS=1 cargo test -p adit-config` writes the problems as they are now; read the difference before keeping it.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use adit_config::{Config, Problems};

fn yaml_files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

/// Parses with a name relative to the file's own directory, so that problems read the same everywhere.
fn parse(path: &Path) -> Result<Config, Problems> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let directory = path.parent().unwrap().to_owned();
    let read = move |file: &Path| match file.to_str().unwrap() {
        "mesh.key" => Ok(b"yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n".to_vec()),
        "home.secret" => Ok(b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n".to_vec()),
        "home.token" => Ok(TOKEN.as_bytes().to_vec()),
        _ => fs::read(directory.join(file)).map_err(|_| "no such file".to_owned()),
    };
    Config::parse(&fs::read_to_string(path).unwrap(), name, &read)
}

#[test]
fn good_files_are_accepted() {
    let files = [yaml_files("tests/good"), yaml_files("../../config")].concat();
    assert!(files.len() >= 6);
    for file in files {
        parse(&file).unwrap_or_else(|problems| panic!("{}:\n{problems}", file.display()));
    }
}

#[test]
fn bad_files_are_refused_with_all_their_problems() {
    let files = yaml_files("tests/bad");
    assert!(files.len() >= 6);
    for file in files {
        let expected = file.with_extension("expected");
        let found = match parse(&file) {
            Ok(_) => panic!("{} was accepted", file.display()),
            Err(problems) => format!("{problems}\n"),
        };
        if std::env::var_os("ADIT_BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(&expected).unwrap_or_default(), "{}", file.display());
    }
}

#[test]
fn the_effective_configuration_masks_secrets_and_names_places() {
    let file = yaml_files("tests/good").into_iter().find(|file| file.ends_with("whole.yaml")).unwrap();
    let config = parse(&file).unwrap();
    let yaml = config.to_effective_yaml();
    assert!(!yaml.contains("AAAAAAAA"), "{yaml}");
    assert!(yaml.contains("secret: \"***\""), "{yaml}");
    assert!(yaml.contains("protocol: http2  # whole.yaml:"), "{yaml}");
    assert!(yaml.contains("retries: 5\n"), "{yaml}");
    assert!(config.to_effective().to_string().contains("\"level\":\"debug\""));
    assert_eq!(config.sources.len(), 3, "{:?}", config.sources);
}

#[test]
fn the_effective_configuration_is_itself_a_configuration() {
    let name = "ingress.yaml";
    let file = yaml_files("tests/good").into_iter().find(|file| file.ends_with(name)).unwrap();
    let config = parse(&file).unwrap();
    let yaml = config.to_effective_yaml();
    let again = Config::parse(&yaml, name, &|_: &Path| Err("none".to_owned())).unwrap();
    assert_eq!(again.entry_points, config.entry_points);
    assert_eq!((again.access_log, again.metrics), (config.access_log, config.metrics));
    assert_eq!(again.providers, config.providers);
    assert_eq!(again.tls, config.tls);
}

/// `{"a":"test","s":<32 zero bytes>,"t":"3f2b7a10-5a3c-4c5e-9d1f-2f6d1c0b7e55"}`.
const TOKEN: &str = "eyJhIjoidGVzdCIsInMiOiJBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBPSIsInQiOiIzZjJiN2ExMC01YTNjLTRjNWUtOWQxZi0yZjZkMWMwYjdlNTUifQ==";
