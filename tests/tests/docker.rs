//! The Docker files: what they promise is there, and a real server takes the flags that they give it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use larder_tests::{Flavor, RedisServer};
use saphyr::{LoadableYamlNode, YamlOwned};

#[test]
fn the_services_are_a_cache_and_the_quickstart_that_waits_for_it() {
    let compose = compose();
    let services = compose["services"].as_mapping().unwrap();
    let names: Vec<_> = services.keys().filter_map(|name| name.as_str()).collect();
    assert_eq!(names, ["redis", "quickstart"]);

    let quickstart = &compose["services"]["quickstart"];
    assert_eq!(quickstart["environment"]["REDIS_URL"].as_str(), Some("redis://redis:6379"));
    assert_eq!(quickstart["environment"]["PORT"].as_str(), Some("3000"));
    assert_eq!(quickstart["depends_on"]["redis"]["condition"].as_str(), Some("service_healthy"));
}

#[test]
fn the_cache_has_a_health_check_and_a_named_volume() {
    let compose = compose();
    let redis = &compose["services"]["redis"];
    let check = words(&redis["healthcheck"]["test"]);
    assert!(check.iter().any(|word| word.contains("ping")), "{check:?}");
    for setting in ["interval", "timeout", "retries"] {
        assert!(redis["healthcheck"].contains_mapping_key(setting), "{setting}");
    }

    let volume = words(&redis["volumes"]).remove(0);
    let (name, folder) = volume.split_once(':').unwrap();
    assert_eq!(folder, "/data");
    assert!(compose["volumes"].contains_mapping_key(name), "the volume {name} is not declared");
}

#[test]
fn no_port_is_open_to_other_machines() {
    let compose = compose();
    for service in ["redis", "quickstart"] {
        for port in words(&compose["services"][service]["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{service}: {port}");
        }
    }
}

#[test]
fn a_real_server_takes_the_flags_of_the_cache() {
    let compose = compose();
    let command = words(&compose["services"]["redis"]["command"]);
    assert_eq!(command[0], "valkey-server");
    assert_eq!(command[1..].len() % 2, 0, "each flag has one value: {command:?}");

    for flavor in [Flavor::Redis, Flavor::Valkey] {
        let server = command[1..]
            .chunks_exact(2)
            .fold(RedisServer::builder(), |builder, flag| builder.arg(&flag[0], &flag[1]))
            .flavor(flavor)
            .start();
        assert_eq!(server.cli(&["CONFIG", "GET", "maxmemory"]), format!("maxmemory\n{}", 256 << 20));
        assert_eq!(server.cli(&["CONFIG", "GET", "maxmemory-policy"]), "maxmemory-policy\nallkeys-lru");
    }
}

#[test]
fn the_image_builds_the_quickstart_and_does_not_run_as_root() {
    let compose = compose();
    let build = &compose["services"]["quickstart"]["build"];
    let context = folder().join(build["context"].as_str().unwrap());
    let dockerfile = fs::read_to_string(context.join(build["dockerfile"].as_str().unwrap())).unwrap();

    assert!(dockerfile.contains("cargo build --release --locked -p quickstart"));
    let package = fs::read_to_string(context.join("examples/quickstart/Cargo.toml")).unwrap();
    assert!(package.contains("name = \"quickstart\""));

    let (_, image) = dockerfile.rsplit_once("\nFROM ").unwrap();
    let user = image.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert_ne!(user, "root");
}

#[test]
fn the_image_is_built_with_the_oldest_rust_that_is_supported() {
    let dockerfile = fs::read_to_string(folder().join("Dockerfile")).unwrap();
    let manifest = fs::read_to_string(folder().join("../Cargo.toml")).unwrap();
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{}-", version.trim_matches('"'))), "{version}");
}

/// `docker/compose.yaml`.
fn compose() -> YamlOwned {
    let text = fs::read_to_string(folder().join("compose.yaml")).expect("docker/compose.yaml is there");
    YamlOwned::load_from_str(&text).expect("docker/compose.yaml is YAML").remove(0)
}

/// The texts of a list.
fn words(list: &YamlOwned) -> Vec<String> {
    let list = list.as_sequence().expect("a list");
    list.iter().map(|word| word.as_str().expect("a text").to_owned()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker")
}
