//! The Docker files: what they promise is there, and a real server takes the flags that they give it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
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

/// Runs a health check as Docker does, for a server on this port: nothing else of it is another.
fn is_healthy(check: &[String], port: u16) -> bool {
    let [kind, script] = check else { panic!("{check:?} should be one script") };
    assert_eq!(kind, "CMD-SHELL");
    // The client that the script names talks to this port. The one of Redis is the same program.
    let folder = tempfile::tempdir().unwrap();
    let client = folder.path().join("valkey-cli");
    fs::write(&client, format!("#!/bin/sh\nexec redis-cli -h 127.0.0.1 -p {port} \"$@\"\n")).unwrap();
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), env::var("PATH").unwrap());
    let there = Command::new("redis-cli").arg("--version").output();
    assert!(there.is_ok_and(|output| output.status.success()), "redis-cli is not on the PATH");
    Command::new("sh").args(["-c", script]).env("PATH", path).output().unwrap().status.success()
}

#[test]
fn a_server_is_healthy_as_long_as_it_answers_everybody() {
    let check = words(&compose()["services"]["redis"]["healthcheck"]["test"]);
    let mut server = RedisServer::builder().open().start();
    assert!(is_healthy(&check, server.port()), "it is there");
    server.kill();
    assert!(!is_healthy(&check, server.port()), "it is gone");
    server.restart();
    assert!(is_healthy(&check, server.port()), "it is there again");
    let closed = RedisServer::builder().password("secret").start();
    assert!(!is_healthy(&check, closed.port()), "it answers only who knows the password");
}

#[test]
fn the_compose_file_says_nothing_that_compose_does_not_know() {
    assert_eq!(problems(&compose()), Vec::<String>::new());
}

#[test]
fn what_is_wrong_in_a_compose_file_is_found() {
    let service = "services:\n  a:\n    image: x\n";
    for (text, problem) in [
        (format!("{service}extra: 1\n"), "unknown key extra"),
        ("volumes:\n  data:\n".to_owned(), "no services"),
        (format!("{service}    comand: [x]\n"), "a: unknown key comand"),
        ("services:\n  a:\n    restart: always\n".to_owned(), "a: neither image nor build"),
        (format!("{service}    command: [x, {{y: 1}}]\n"), "a: command is no list of texts"),
        (format!("{service}    volumes: [data:/data]\n"), "a: the volume data is not declared"),
        (format!("{service}volumes:\n  data:\n"), "nobody uses the volume data"),
        (
            format!("{service}    depends_on:\n      b:\n        condition: service_healthy\n"),
            "a: there is no service b",
        ),
        (
            format!("{service}  b:\n    image: x\n    depends_on:\n      a:\n        condition: service_healthy\n"),
            "b: a has no health check",
        ),
    ] {
        assert_eq!(problems(&YamlOwned::load_from_str(&text).unwrap().remove(0)), [problem], "{text}");
    }
}

/// What compose does not know of a file, or would refuse.
fn problems(compose: &YamlOwned) -> Vec<String> {
    const KNOWN: [&str; 7] = ["name", "services", "volumes", "networks", "configs", "secrets", "include"];
    let mut problems = unknown(compose, &KNOWN);
    let Some(services) = entry(compose, "services") else {
        problems.push("no services".to_owned());
        return problems;
    };
    let declared: Vec<&str> = entry(compose, "volumes").into_iter().flat_map(keys).collect();
    let mut used = Vec::new();
    for name in keys(services) {
        let of_service = problems_of(&services[name], services, &declared);
        problems.extend(of_service.into_iter().map(|problem| format!("{name}: {problem}")));
        used.extend(named_volumes(&services[name]));
    }
    let unused = declared.iter().filter(|name| !used.iter().any(|used| used == *name));
    problems.extend(unused.map(|name| format!("nobody uses the volume {name}")));
    problems
}

/// The same of a service.
fn problems_of(service: &YamlOwned, services: &YamlOwned, declared: &[&str]) -> Vec<String> {
    const KNOWN: [&str; 12] = [
        "image",
        "build",
        "command",
        "entrypoint",
        "environment",
        "ports",
        "volumes",
        "depends_on",
        "healthcheck",
        "restart",
        "mem_limit",
        "user",
    ];
    let mut problems = unknown(service, &KNOWN);
    if entry(service, "image").or(entry(service, "build")).is_none() {
        problems.push("neither image nor build".to_owned());
    }
    let lists = ["command", "ports", "volumes"];
    let no_lists = lists.iter().filter(|key| entry(service, key).is_some_and(|list| texts(list).is_none()));
    problems.extend(no_lists.map(|key| format!("{key} is no list of texts")));
    let undeclared = named_volumes(service).into_iter().filter(|name| !declared.contains(&name.as_str()));
    problems.extend(undeclared.map(|name| format!("the volume {name} is not declared")));
    for name in entry(service, "depends_on").into_iter().flat_map(keys) {
        let waits_for_health = service["depends_on"][name]["condition"].as_str() == Some("service_healthy");
        match entry(services, name) {
            None => problems.push(format!("there is no service {name}")),
            Some(other) if waits_for_health && entry(other, "healthcheck").is_none() => {
                problems.push(format!("{name} has no health check"));
            }
            Some(_) => {}
        }
    }
    problems
}

fn unknown(yaml: &YamlOwned, known: &[&str]) -> Vec<String> {
    keys(yaml).filter(|key| !known.contains(key)).map(|key| format!("unknown key {key}")).collect()
}

/// The volumes of a service that are no folders of the machine.
fn named_volumes(service: &YamlOwned) -> Vec<String> {
    let volumes = entry(service, "volumes").and_then(texts).unwrap_or_default();
    let sources = volumes.iter().map(|volume| volume.split(':').next().unwrap_or_default());
    sources.filter(|source| !source.starts_with(['.', '/', '~'])).map(str::to_owned).collect()
}

fn entry<'y>(yaml: &'y YamlOwned, key: &str) -> Option<&'y YamlOwned> {
    yaml.contains_mapping_key(key).then(|| &yaml[key])
}

fn keys(yaml: &YamlOwned) -> impl Iterator<Item = &str> {
    let mapping = yaml.as_mapping().expect("a mapping");
    mapping.keys().map(|key| key.as_str().expect("a key is a text"))
}

/// The texts of a list, if it is one.
fn texts(list: &YamlOwned) -> Option<Vec<String>> {
    list.as_sequence()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
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
    texts(list).expect("a list of texts")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker")
}
